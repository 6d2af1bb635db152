"""Learning from a labelled data set without an environment (paper, Sec. 5.3)."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch as th

from sb3_pmpo.core.samples import Normalisation, mean_over_samples
from sb3_pmpo.learn_checks import check_callback, check_count
from sb3_pmpo.offline.columns import DatasetError
from sb3_pmpo.offline.heeded import Fading
from sb3_pmpo.offline.objective import LabelObjective, data_kl, reference_kl
from sb3_pmpo.offline.run import Labelled, LabelSteps, Loop, check_spaces, run
from sb3_pmpo.offline.sampling import LabelSampler
from sb3_pmpo.offline.weights import Labels, LabelWeights, choose_weights

KLS = ("data", "reference")


def learn_from_labels(
    model: Any,
    source: Labelled,
    loop: Loop,
    *,
    kl: str,
    alpha: float | None,
    beta: float | tuple[float, float] | None,
    normalise: Normalisation,
    clone_steps: int | None,
    reference_interval: int | None,
) -> None:
    """Fit a model's policy to labelled rows; see :meth:`sb3_pmpo.PMPO.learn_offline`.

    :param model: a PMPO.
    :param source: the rows.
    :param loop: how long, and who watches.
    :param kl: ``"data"`` or ``"reference"``.
    :param alpha: None for what the labels ask for.
    :param beta: None for what fits alpha, see :func:`~sb3_pmpo.offline.weights.choose_weights`.
    :param normalise: how the sets of labels are averaged.
    :param clone_steps: of behaviour cloning for the reference before the first step.
    :param reference_interval: steps between copies of the policy to the reference; None for none.
    """
    _check(source, loop, kl, normalise)
    if clone_steps is not None:
        check_count("clone_steps", clone_steps, 0)
    if reference_interval is not None:
        check_count("reference_interval", reference_interval, 1)
    loop = loop._replace(gradient_steps=int(loop.gradient_steps))
    if loop.reset_num_timesteps:
        model.label_rng = None  # else it draws on as it did
    learner = LabelLearner(
        model, source, kl=kl, alpha=alpha, beta=beta, normalise=normalise,
        reference_interval=reference_interval,
    )  # fmt: skip
    learner.adapt()
    learner.steps.fit_normaliser()
    new = model.n_updates == 0 and not model.has_given_weights
    if kl == "reference" and (new or loop.reset_num_timesteps):
        default = loop.gradient_steps if new else 0
        steps = default if clone_steps is None else int(clone_steps)
        if steps and model.verbose:
            print(f"Cloning the data for {steps} steps, which makes the reference")
        clone(model, source, steps, learner.steps.rng)
        if steps:  # the reference is another one
            model.label_log_probs = None

    def step() -> dict[str, th.Tensor]:
        learner.adapt()
        record(model.logger)
        metrics = learner.steps.step(learner.objective)
        if kl == "data":  # it has no part in that, and what acts or is saved from here on has it
            model.learner.reference_lag.move(1.0)
        return metrics

    record = getattr(source, "record", lambda logger: None)  # of a FeedbackBuffer
    run(model, loop, _refreshing(model, step, reference_interval))


class LabelLearner:
    """Steps on labelled rows, with alpha and beta for the labels that there are now.

    :param model: a PMPO.
    :param source: the rows, which may grow, also by a kind of label that it had none of.
    :param kl: ``"data"`` or ``"reference"``.
    :param alpha: None for what the labels ask for.
    :param beta: None for what fits alpha.
    :param normalise: how the sets of labels are averaged.
    :param reference_interval: steps between copies of the policy to the reference; None for none.
    :raises DatasetError: if the rows' spaces are not the model's.
    """

    steps: LabelSteps
    objective: LabelObjective

    def __init__(
        self,
        model: Any,
        source: Labelled,
        *,
        kl: str,
        alpha: float | None = None,
        beta: float | tuple[float, float] | None = None,
        normalise: Normalisation = mean_over_samples,
        reference_interval: int | None = None,
    ) -> None:
        check_spaces(model, source)
        self.model, self.source, self.kl, self.normalise = model, source, kl, normalise
        self._given, self._interval = (alpha, beta), reference_interval
        self._kinds = self._refused = (False, False)

    def adapt(self) -> None:
        """Choose the weights anew if the labels ask for others than before.

        :raises DatasetError: if there are no labels.
        :raises ValueError: for weights that learn nothing, or that would diverge.
        :warns UserWarning: where they would because of a kind of label that has come since. What
            was learned and asked for goes on without that kind.
        """
        labels = self.source.label_totals()
        kinds = (labels.accepted > 0, labels.rejected > 0)
        known = any(self._kinds)
        if known and kinds in (self._kinds, self._refused) and not self._follows_shares(labels):
            return
        try:
            weights = self._choose(labels)
            objective = make_objective(self.model, weights, labels, self.kl, self.normalise)
        except ValueError as error:
            if not known:
                raise
            self._refused = kinds
            warnings.warn(
                f"labels of another kind have come, and are left out: {error}", stacklevel=2
            )
            return
        self.objective = objective
        if kinds != self._kinds:
            self.steps = self._make_steps(weights, fades=weights.alpha < 1.0 and kinds[1])
        self._kinds = kinds

    def _follows_shares(self, labels: Labels) -> bool:
        """Say whether beta depends on how many of the rows are rejected."""
        by_set = self.normalise is not mean_over_samples
        return self._given[1] is None and by_set and not labels.accepted

    def _choose(self, labels: Labels) -> LabelWeights:
        weights = choose_weights(
            labels, *self._given, otherwise=self.model.alpha, normalise=self.normalise
        )
        check_refresh(weights.alpha, self._interval)
        return weights

    def _make_steps(self, weights: LabelWeights, *, fades: bool) -> LabelSteps:
        model = self.model
        if model.label_rng is None:  # not before: rows without labels leave SB3's numbers alone
            model.label_rng = np.random.default_rng(np.random.randint(2**31))
        weigh = Fading(model, self.source) if fades and self.kl == "reference" else None
        sampler = partial(sampler_for, weights=weights)
        return LabelSteps(model, self.source, model.batch_size, sampler, model.label_rng, weigh)


def _check(source: Labelled, loop: Loop, kl: str, normalise: Normalisation) -> None:
    if kl not in KLS:
        raise ValueError(f"kl must be one of {list(KLS)}, got {kl!r}")
    if not callable(normalise):
        raise ValueError(
            "normalise must be mean_over_samples or mean_per_set, the functions of "
            f"sb3_pmpo.core.samples, got {normalise!r}"
        )
    if not isinstance(source, Labelled):
        raise TypeError(
            f"learn from a LabelledDataset or a FeedbackBuffer, got {type(source).__name__}: "
            "LabelledDataset.from_replay_buffer, from_minari and from_d4rl_like make one"
        )
    if not len(source):
        raise DatasetError("there is no feedback yet: add some, then learn")
    check_count("gradient_steps", loop.gradient_steps, 1)
    if loop.log_interval is not None:
        check_count("log_interval", loop.log_interval, 1)
    check_callback(loop.callback)


def make_objective(
    model: Any, weights: LabelWeights, labels: Labels, kl: str, normalise: Normalisation
) -> LabelObjective:
    """Make the objective that a model's arguments and these weights ask for.

    :raises ValueError: for weights that learn nothing from the labels, or that diverge on them.
    """
    has_parts = model.actor.has_parts
    return LabelObjective(
        weights.alpha,
        weights.betas,
        data_kl if kl == "data" else reference_kl(model.decoupled and has_parts),
        normalise,
        # A barrier would pull a clone away from what was done at the box's edge.
        model.edge_barrier if has_parts and kl == "reference" else 0.0,
        labels,
    )


def sampler_for(
    labels: np.ndarray, row_weights: np.ndarray | None, *, weights: LabelWeights
) -> LabelSampler:
    """Make what draws the rows that these weights count."""
    return LabelSampler(
        labels,
        row_weights,
        accepted=weights.alpha > 0.0,
        rejected=weights.alpha < 1.0,
        all_rows=max(weights.betas) > 0.0,
    )


def check_refresh(alpha: float, interval: int | None) -> None:
    """Refuse a reference that is the policy at every step.

    :raises ValueError: if it is, and rejected rows count.
    """
    if interval == 1 and alpha < 1.0:
        raise ValueError(
            f"reference_interval=1 with alpha={alpha:g} is refused: a reference that is refreshed "
            "at every step equals the policy, so its KL has no gradient and nothing outweighs the "
            "push away from rejected rows; use 100, or None for a fixed reference"
        )


def clone(model: Any, source: Labelled, steps: int, rng: np.random.Generator) -> None:
    """Clone what was done in the data, if asked to, and make the policy the reference.

    :param steps: of behaviour cloning on all rows, whatever their labels; 0 for none.
    """
    objective = LabelObjective(0.0, (1.0, 1.0))  # the KL to the data alone: no row has a label

    def everything(labels: np.ndarray, weights: np.ndarray | None) -> LabelSampler:
        none = np.zeros_like(labels)
        return LabelSampler(none, weights, accepted=False, rejected=False, all_rows=True)

    cloning = LabelSteps(model, Unlabelled(source), model.batch_size, everything, rng)
    rate = (model.actor_lr_schedule or model.lr_schedule)(1.0)
    model.learner.set_learning_rates(rate, rate)
    model.policy.set_training_mode(True)
    for _ in range(steps):
        cloning.step(objective)
    model.learner.reference_lag.move(1.0)


class Unlabelled:
    """The same rows without their labels.

    :param source: the rows.
    """

    def __init__(self, source: Labelled) -> None:
        self._source = source
        self.observation_space, self.action_space = source.observation_space, source.action_space

    def __len__(self) -> int:
        return len(self._source)

    def rows(self, index: np.ndarray) -> Any:
        """Copy a batch of rows."""
        rows = self._source.rows(index)
        return rows._replace(labels=np.zeros_like(rows.labels))

    def labels_and_weights(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Return no labels, and the rows' weights."""
        labels, weights = self._source.labels_and_weights()
        return np.zeros_like(labels), weights

    def label_totals(self) -> Labels:
        """Return the rows' weight, none of it accepted or rejected."""
        return Labels(0.0, 0.0, self._source.label_totals().total)


def _refreshing(
    model: Any, step: Callable[[], dict[str, th.Tensor]], interval: int | None
) -> Callable[[], dict[str, th.Tensor]]:
    """Copy the policy to the reference after every so many steps."""
    if interval is None:
        return step

    def refreshed() -> dict[str, th.Tensor]:
        metrics = step()
        if (model.n_updates + 1) % interval == 0:
            model.learner.reference_lag.move(1.0)
        return metrics

    return refreshed
