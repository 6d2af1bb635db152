"""PMPO: preference-based maximum a posteriori policy optimisation."""

from __future__ import annotations

from typing import Any, Unpack

from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_pmpo.core.labels import Labeller, advantage, is_balanced, top_k, try_labeller
from sb3_pmpo.objectives import PMPOObjective
from sb3_pmpo.online.arguments import SharedArguments, lists_all
from sb3_pmpo.online.off_policy import OffPolicyMPO
from sb3_pmpo.policies import PMPOPolicy

#: The paper's S = 4, top 2 accepted, bottom 2 rejected, joint KL (Sec. 5.2), with its three pairs
#: of alpha and beta. The reference is refreshed every N updates; N = 100 is the bandits' (5.1).
PAPER: dict[str, Any] = {
    "n_samples": 4,
    "labeller": top_k(2),
    "decoupled": False,
    "edge_barrier": 0.0,
    "pessimism": 0.0,
    "reference_tau": 1.0,
    "reference_update_interval": 100,
}
PAPER_AR: dict[str, Any] = PAPER | {"alpha": 0.5, "beta": 0.5}
PAPER_A: dict[str, Any] = PAPER | {"alpha": 1.0, "beta": 0.0}
PAPER_R: dict[str, Any] = PAPER | {"alpha": 0.0, "beta": 2.0}

#: The measured best KL weights (benchmarks/trials.md): of mean and std with labels that weigh the
#: same in every state and with advantage(), and of logits.
GAUSSIAN_BETA = (1.0, 20.0)
ADVANTAGE_BETA = (0.2, 100.0)
CATEGORICAL_BETA = 5.0


@lists_all
class PMPO(OffPolicyMPO):
    """Learn from accepted and rejected actions, labelled by a TD-learned critic (Eq. 10).

    What SAC and TD3 also take has their names and meaning.

    :param alpha: weight of the accepted samples, in [0, 1]; the rejected weigh ``1 - alpha``. 1
        learns from accepted samples alone, 0 from rejected ones alone.
    :param beta: weight of ``KL(reference || policy)``, >= 0: one number, or a pair for the mean and
        for the std. A categorical policy takes the first. None for the measured best: (0.2, 100)
        with ``advantage()``, (1, 20) with other labels, 5 for a categorical policy. With half of
        the samples in each set the loss is safe iff ``beta >= 2 * (1 - alpha)``, and a warning says
        so below that. For the mean alone ``beta > 1 - 2 * alpha`` is enough with ``advantage()``.
    :param labeller: says who is accepted and who rejected, with what weight, from the samples'
        scores. None for ``advantage()``. It has not been measured for a categorical policy or with
        ``decoupled=False``; there None is for the better and the worse half.
    :param n_samples: S, actions the reference proposes per state.
    :param decoupled: fit the mean under the reference's std and the std around its mean, each with
        a KL of its own. False fits both with one KL, as the paper does, with ``beta`` of the mean.
    :param edge_barrier: >= 0, weight of ``-log(1 - mean^2)``, which keeps a Gaussian's mean from
        the edge of the box, where tanh has no slope; 0 for none.
    :param _init_setup_model: build the networks now.
    :raises ValueError: for an argument out of its range, by name, value and range.
    """

    def __init__(
        self,
        policy: str | type[PMPOPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 1e-3,
        *,
        alpha: float = 0.5,
        beta: float | tuple[float, float] | None = None,
        labeller: Labeller | None = None,
        n_samples: int = 6,
        decoupled: bool = True,
        edge_barrier: float = 0.02,
        _init_setup_model: bool = True,
        **shared: Unpack[SharedArguments],
    ) -> None:
        super().__init__(policy, env, learning_rate, n_samples, **shared)
        self.alpha = alpha
        self.beta = beta
        self.labeller = labeller
        self.decoupled = decoupled
        self.edge_barrier = edge_barrier
        if _init_setup_model:
            self._setup_model()

    def _make_objective(self) -> PMPOObjective:
        """Choose labeller and KL weights where none are given, and try the labeller."""
        has_parts = len(self.actor.parts) > 1
        decoupled = self.decoupled and has_parts
        labeller = self.labeller
        if labeller is None:
            labeller = advantage() if decoupled else top_k(self.n_samples // 2)
        beta: Any = self.beta
        if beta is None:
            gaussian = ADVANTAGE_BETA if decoupled and is_balanced(labeller) else GAUSSIAN_BETA
            beta = gaussian if has_parts else CATEGORICAL_BETA
        mean, *rest = beta if isinstance(beta, (tuple, list)) else (beta, beta)
        if len(rest) != 1:
            raise ValueError(f"beta must be a number or a pair (mean, std), got {self.beta}")
        objective = PMPOObjective(self.alpha, mean, rest[0], labeller, decoupled, self.edge_barrier)
        try_labeller(labeller, self.n_samples, get_action_dim(self.action_space), self.device)
        return objective
