"""DPO and IPO, online: the baselines of the paper, on pairs that the critic makes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Unpack

from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_pmpo.core.losses import PairLoss, dpo_loss
from sb3_pmpo.objectives import DPOObjective, try_loss
from sb3_pmpo.online.arguments import SharedArguments, lists_all
from sb3_pmpo.online.off_policy import OffPolicyMPO
from sb3_pmpo.online.written import as_object
from sb3_pmpo.policies import PMPOPolicy

PairwiseLoss = Callable[..., PairLoss]


@lists_all
class DPO(OffPolicyMPO):
    """Learn from the best and the worst of the actions that the reference proposes.

    Direct preference optimisation (Rafailov et al., 2023) with the critic as the judge, as the
    paper compares against (Sec. 5.2). The arguments are those of :class:`sb3_pmpo.PMPO`, but for
    its labels and its KL, which are a pair and implicit here.

    :param beta: > 0, weight of the implicit KL; the paper needed 20 for a Gaussian policy.
    :param loss: :func:`sb3_pmpo.dpo_loss` or :func:`sb3_pmpo.ipo_loss`, or its name.
    :param n_samples: S, actions the reference proposes per state, of which two are used.
    :param _init_setup_model: build the networks now.
    :raises ValueError: for an argument out of its range, by name, value and range.
    """

    def __init__(
        self,
        policy: str | type[PMPOPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 1e-3,
        *,
        beta: float = 20.0,
        loss: PairwiseLoss | str = dpo_loss,
        n_samples: int = 4,
        _init_setup_model: bool = True,
        **shared: Unpack[SharedArguments],
    ) -> None:
        super().__init__(policy, env, learning_rate, n_samples, **shared)
        self.beta = beta
        self.loss = loss
        if _init_setup_model:
            self._setup_model()

    def _make_objective(self) -> DPOObjective:
        """Build the objective, which checks ``beta`` and ``loss``."""
        loss = as_object("loss", self.loss)
        objective = DPOObjective(self.beta, loss)
        try_loss(loss, objective.beta, self.device)
        return objective
