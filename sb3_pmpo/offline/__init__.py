"""Labelled data, and learning from it without an environment (paper, Sec. 5.3)."""

from sb3_pmpo.offline.columns import DatasetError
from sb3_pmpo.offline.dataset import LabelledDataset, LabelRates, Rows
from sb3_pmpo.offline.labelling import (
    Labelled,
    LabelReport,
    label_by,
    label_by_advantage,
    label_by_return,
)
from sb3_pmpo.offline.values import ValueFunction, gae, monte_carlo, td

# For those who look for functions.
from_d4rl_like = LabelledDataset.from_d4rl_like
from_minari = LabelledDataset.from_minari
from_replay_buffer = LabelledDataset.from_replay_buffer
to_minari = LabelledDataset.to_minari

__all__ = [
    "DatasetError",
    "LabelRates",
    "LabelReport",
    "Labelled",
    "LabelledDataset",
    "Rows",
    "ValueFunction",
    "from_d4rl_like",
    "from_minari",
    "from_replay_buffer",
    "gae",
    "label_by",
    "label_by_advantage",
    "label_by_return",
    "monte_carlo",
    "td",
    "to_minari",
]
