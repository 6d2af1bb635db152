"""PMPO for language models, on TRL (Sec. 5.4). An extra: ``pip install 'sb3_pmpo[lm]'``.

Importing this package imports neither transformers nor TRL; using one of its names does.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_HOMES = {
    "PMPOConfig": "sb3_pmpo.lm.config",
    "PMPOOfflineConfig": "sb3_pmpo.lm.config",
    "PMPOOfflineTrainer": "sb3_pmpo.lm.offline",
    "PMPOTrainer": "sb3_pmpo.lm.online",
}

if TYPE_CHECKING:
    from sb3_pmpo.lm.config import PMPOConfig, PMPOOfflineConfig
    from sb3_pmpo.lm.offline import PMPOOfflineTrainer
    from sb3_pmpo.lm.online import PMPOTrainer

__all__ = ["PMPOConfig", "PMPOOfflineConfig", "PMPOOfflineTrainer", "PMPOTrainer"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"sb3_pmpo.lm.{name} needs {error.name!r}: pip install 'sb3_pmpo[lm]'"
        ) from error
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
