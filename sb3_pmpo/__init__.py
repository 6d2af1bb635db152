"""sb3_pmpo: the MPO family, PMPO first, for Stable-Baselines3."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sb3_pmpo import _moved

_moved.install()

__version__ = "0.2.0"

#: Where each public name is. It is imported when it is used: ``import sb3_pmpo.core`` then brings
#: neither Stable-Baselines3 nor Gymnasium.
_HOMES = {
    "sb3_pmpo.core.labels": (
        "advantage",
        "best_worst",
        "boltzmann",
        "mean_score",
        "quantile",
        "state_value",
        "threshold",
        "top_k",
    ),
    "sb3_pmpo.core.losses": ("dpo_loss", "ipo_loss"),
    "sb3_pmpo.core.samples": ("Candidates", "Preference", "from_labels", "from_masks"),
    "sb3_pmpo.online.dpo": ("DPO",),
    "sb3_pmpo.online.mpo": ("MPO",),
    "sb3_pmpo.online.pmpo": ("PAPER_A", "PAPER_AR", "PAPER_R", "PMPO"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

if TYPE_CHECKING:
    from sb3_pmpo.core.labels import (
        advantage,
        best_worst,
        boltzmann,
        mean_score,
        quantile,
        state_value,
        threshold,
        top_k,
    )
    from sb3_pmpo.core.losses import dpo_loss, ipo_loss
    from sb3_pmpo.core.samples import Candidates, Preference, from_labels, from_masks
    from sb3_pmpo.online.dpo import DPO
    from sb3_pmpo.online.mpo import MPO
    from sb3_pmpo.online.pmpo import PAPER_A, PAPER_AR, PAPER_R, PMPO

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


#: Parts of the package that ``import sb3_pmpo`` alone gives: they are imported when they are named.
_PARTS = frozenset(
    ["bandit", "envs", "export", "feedback", "lm", "offline", "pretrained", "replay"]
)


def __getattr__(name: str) -> Any:
    if name in _PARTS:
        return import_module(f"{__name__}.{name}")
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOME_OF[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
