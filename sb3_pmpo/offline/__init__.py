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

__all__ = [
    "DatasetError",
    "LabelRates",
    "LabelReport",
    "Labelled",
    "LabelledDataset",
    "Rows",
    "ValueFunction",
    "gae",
    "label_by",
    "label_by_advantage",
    "label_by_return",
    "monte_carlo",
    "td",
]
