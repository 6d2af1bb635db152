"""Names of version 0.1, for scripts and saved models that use them."""

from sb3_pmpo.core.labels import (
    advantage,
    best_worst,
    boltzmann,
    mean_score,
    quantile,
    ranking,
    state_value,
    threshold,
    top_k,
)
from sb3_pmpo.core.labels import advantage as Advantage
from sb3_pmpo.core.labels import boltzmann as Boltzmann
from sb3_pmpo.core.labels import quantile as Quantile
from sb3_pmpo.core.labels import threshold as Threshold
from sb3_pmpo.core.labels import top_k as TopK
from sb3_pmpo.core.samples import (
    Candidates,
    Preference,
    from_labels,
    from_masks,
    mean_over_samples,
    mean_per_set,
)

__all__ = [
    "Advantage",
    "Boltzmann",
    "Candidates",
    "Preference",
    "Quantile",
    "Threshold",
    "TopK",
    "advantage",
    "best_worst",
    "boltzmann",
    "from_labels",
    "from_masks",
    "mean_over_samples",
    "mean_per_set",
    "mean_score",
    "quantile",
    "ranking",
    "state_value",
    "threshold",
    "top_k",
]
