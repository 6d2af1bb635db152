"""MPO: maximum a posteriori policy optimisation, the paper's baseline."""

from __future__ import annotations

from typing import Unpack

from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_pmpo.core.checks import check_positive
from sb3_pmpo.core.e_step import Duals
from sb3_pmpo.objectives import MPOObjective
from sb3_pmpo.online.arguments import SharedArguments, lists_all
from sb3_pmpo.online.off_policy import OffPolicyMPO
from sb3_pmpo.policies import PMPOPolicy

#: As in Acme, where a log value stands for about itself (softplus); they adapt fast.
INITIAL_TEMPERATURE = 10.0
INITIAL_MULTIPLIER = {"mean": 10.0, "std": 1000.0, "joint": 3.0}


@lists_all
class MPO(OffPolicyMPO):
    """Maximum a posteriori policy optimisation (Abdolmaleki et al., 2018a and b).

    The E-step weighs the reference's samples by ``exp(Q / temperature)``, the temperature being
    learned so that the weights' KL to the samples is ``epsilon``. The M-step fits the policy to
    them under a KL constraint for each action dimension, for a Gaussian's mean and std apart,
    with learned multipliers. The defaults of ``n_samples`` and of the epsilons are those of Acme
    (Hoffman et al., 2020), but for ``epsilon_mean`` (there 0.0025) and ``epsilon_std`` (1e-6),
    which are too tight for tens of thousands of updates: walker-walk ends at 73, not 614.
    The other arguments are those of :class:`sb3_pmpo.PMPO`.

    :param epsilon: > 0, KL in nats of the E-step's weights to the samples.
    :param epsilon_mean: > 0, KL in nats that the mean of each dimension may have to the reference.
    :param epsilon_std: > 0, the same for the std.
    :param epsilon_policy: > 0, the same for a categorical policy, in place of those two.
    :param epsilon_penalty: > 0, KL of additional weights that favour samples inside the box
        (Abdolmaleki et al., 2020, "A distributional view on multi-objective policy
        optimization"); None for no such penalty.
    :param dual_learning_rate: of the Adam of temperatures and multipliers, which are held as log
        values.
    :param n_samples: S, actions the reference proposes per state.
    :param _init_setup_model: build the networks now.
    :raises ValueError: for an argument out of its range, by name, value and range.
    """

    def __init__(
        self,
        policy: str | type[PMPOPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 1e-3,
        *,
        epsilon: float = 0.1,
        epsilon_mean: float = 0.01,
        epsilon_std: float = 1e-4,
        epsilon_policy: float = 0.0025,
        epsilon_penalty: float | None = 0.001,
        dual_learning_rate: float = 1e-2,
        n_samples: int = 20,
        _init_setup_model: bool = True,
        **shared: Unpack[SharedArguments],
    ) -> None:
        super().__init__(policy, env, learning_rate, n_samples, **shared)
        self.epsilon = epsilon
        self.epsilon_mean = epsilon_mean
        self.epsilon_std = epsilon_std
        self.epsilon_policy = epsilon_policy
        self.epsilon_penalty = epsilon_penalty
        self.dual_learning_rate = dual_learning_rate
        if _init_setup_model:
            self._setup_model()

    def _make_objective(self) -> MPOObjective:
        """Check the epsilons and make new duals; ``load`` fills in the saved ones."""
        for name in ("epsilon_mean", "epsilon_std", "epsilon_policy"):
            check_positive(name, getattr(self, name), "it is a KL in nats")
        if self.epsilon_penalty is not None:
            check_positive("epsilon_penalty", self.epsilon_penalty, "None is for no penalty")
        check_positive("dual_learning_rate", self.dual_learning_rate, "1e-2 is usual", high=10.0)
        bounds = {
            "mean": self.epsilon_mean,
            "std": self.epsilon_std,
            "joint": self.epsilon_policy,
        }
        epsilon_kl = {part: bounds[part] for part in self.actor.parts}
        penalised = self.actor.has_parts and self.epsilon_penalty is not None
        temperatures = ("action", "penalty") if penalised else ("action",)
        duals = Duals(
            multipliers={name: INITIAL_MULTIPLIER[name] for name in epsilon_kl},
            n_dims=get_action_dim(self.action_space),
            temperatures=dict.fromkeys(temperatures, INITIAL_TEMPERATURE),
            learning_rate=self.dual_learning_rate,
        )
        penalty = self.epsilon_penalty if penalised else None
        return MPOObjective(self.epsilon, penalty, epsilon_kl, duals)
