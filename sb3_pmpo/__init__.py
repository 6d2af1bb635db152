"""sb3_pmpo: the MPO family, PMPO first, for Stable-Baselines3."""

from sb3_pmpo import _moved
from sb3_pmpo.core.losses import dpo_loss, ipo_loss
from sb3_pmpo.core.preference import (
    Candidates,
    Preference,
    advantage,
    best_worst,
    boltzmann,
    from_labels,
    from_masks,
    mean_score,
    quantile,
    state_value,
    threshold,
    top_k,
)
from sb3_pmpo.dpo import DPO
from sb3_pmpo.mpo import MPO
from sb3_pmpo.pmpo import PAPER_A, PAPER_AR, PAPER_R, PMPO

_moved.install()

__version__ = "0.1.0"

__all__ = [
    "DPO",
    "MPO",
    "PAPER_A",
    "PAPER_AR",
    "PAPER_R",
    "PMPO",
    "Candidates",
    "Preference",
    "__version__",
    "advantage",
    "best_worst",
    "boltzmann",
    "dpo_loss",
    "from_labels",
    "from_masks",
    "ipo_loss",
    "mean_score",
    "quantile",
    "state_value",
    "threshold",
    "top_k",
]
