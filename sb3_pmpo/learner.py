"""The update: critic step, policy step, lagged copies. It knows tensors, policies and optimisers.

Where candidates and labels come from is the caller's business. Online control, the bandit and
offline data move a policy by :func:`policy_step`. Language models share the losses; the step is
that of TRL's trainer.

Axes: N critics, K quantiles, S samples, B transitions, A action dimensions.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple, TypeVar

import torch as th

from sb3_pmpo.core.batch import Batch, Observations
from sb3_pmpo.core.samples import Candidates
from sb3_pmpo.core.td import td_target
from sb3_pmpo.distributions import Distribution
from sb3_pmpo.graphs import (
    CudaGraphs,
    has_plain_rate,
    is_capturable,
    set_capturable,
    set_learning_rate,
)
from sb3_pmpo.networks import LaggedCopy
from sb3_pmpo.objectives import Objective

D = TypeVar("D", bound=Distribution)
Metrics = dict[str, th.Tensor]

#: Samples that average the value of the next state. More cost time and only lower a variance that
#: is small beside that of the transitions: 1, 2 and 8 give equally good scores, as
#: benchmarks/trials.md has it.
BOOTSTRAP_SAMPLES = 1

#: Samples that average the value which a labeller may compare its candidates with.
BASELINE_SAMPLES = 2


# ---------------------------------------------------------------------- the policy's step


def policy_step(
    objective: Objective,
    optimizers: Iterable[th.optim.Optimizer],
    online: D,
    reference: D,
    candidates: Candidates,
    weights: th.Tensor | None = None,
) -> Metrics:
    """Take one step on the objective: the only place that moves a policy.

    :param objective: makes the loss ``[*B]``; its duals take a step too.
    :param optimizers: of the policy.
    :param online: the policy's distribution, with gradient.
    :param reference: the distribution that drew the samples.
    :param candidates: the samples and their scores.
    :param weights: ``[*B]`` of the entries in their sum; None for the mean.
    :return: the objective's metrics, the loss, and the norm of the policy's gradient.
    """
    optimizers, duals = list(optimizers), objective.duals
    stepping = optimizers
    if duals is not None and duals.optimizer not in optimizers:
        stepping = [*optimizers, duals.optimizer]
    loss, metrics = objective(online, reference, candidates)
    total = loss.mean() if weights is None else (weights * loss).sum()
    for optimizer in stepping:
        optimizer.zero_grad()
    total.backward()
    norm = grad_norm(optimizers)
    for optimizer in stepping:
        optimizer.step()
    if duals is not None:
        duals.clamp_()
    return {**metrics, "actor_loss": total.detach(), "actor_grad_norm": norm}


def grad_norm(optimizers: Iterable[th.optim.Optimizer]) -> th.Tensor:
    """Compute the Euclidean norm of all the gradients that optimisers are about to apply."""
    groups = (group for optimizer in optimizers for group in optimizer.param_groups)
    return th.nn.utils.get_total_norm(
        [p.grad for group in groups for p in group["params"] if p.grad is not None]
    )


@th.no_grad()
def sample_metrics(reference: Distribution, candidates: Candidates) -> Metrics:
    """Describe the reference and its samples.

    :param reference: over ``[*B, A]``.
    :param candidates: samples ``[S, *B, A]``, scores ``[S, *B]``.
    :return: what the distribution says of itself; the fraction of samples whose score another
        sample of the same state has; the fraction of action components that leave the box.
    """
    ordered = candidates.scores.sort(dim=0).values
    equal = ordered[1:] == ordered[:-1]  # [S - 1, *B]
    tied = th.zeros_like(ordered, dtype=th.bool)
    tied[1:] |= equal
    tied[:-1] |= equal
    metrics = {**reference.describe(), "tie_fraction": tied.float().mean()}
    if candidates.actions is not None and candidates.outside is not None:
        metrics["action_saturation"] = (candidates.actions.abs() > 1.0).float().mean()
    return metrics


# ---------------------------------------------------------------------- the whole update


class Moves(NamedTuple):
    """What an update moves besides the critics, and by how much.

    :param policy: whether the policy takes a step.
    :param tau: share by which the critic target moves.
    :param reference_tau: share by which the reference moves; 0 for not at all.
    """

    policy: bool
    tau: float
    reference_tau: float


class Plan(NamedTuple):
    """What the updates that share a sampled batch do.

    :param updates: one entry each.
    :param n_samples: S, actions the reference proposes per state.
    :param pessimism: of the bootstrap, in [0, 1].
    """

    updates: tuple[Moves, ...]
    n_samples: int
    pessimism: float


def plan_updates(
    numbers: Iterable[int],
    *,
    policy_delay: int,
    tau: float,
    reference_tau: float,
    reference_update_interval: int,
    n_samples: int,
    pessimism: float,
    policy_held: bool = False,
) -> Plan:
    """Say what each update moves besides the critics; the first of all moves it all.

    :param numbers: of the updates, counted from 0.
    :param policy_delay: updates of the critics for each of the policy.
    :param tau: share by which the critic target moves.
    :param reference_tau: share by which the reference moves at a refresh.
    :param reference_update_interval: updates between refreshes.
    :param n_samples: S.
    :param pessimism: of the bootstrap.
    :param policy_held: the policy takes no step.
    """
    moves = []
    for number in numbers:
        steps = number % policy_delay == 0 and not policy_held
        refreshes = (number + 1) % reference_update_interval == 0
        moves.append(Moves(steps, tau, reference_tau if refreshes else 0.0))
    return Plan(tuple(moves), n_samples, pessimism)


class Updated(NamedTuple):
    """What an update returns.

    :param metrics: to log, one dictionary a step.
    :param errors: ``[B]`` absolute TD errors of the batch, in its order.
    """

    metrics: list[Metrics]
    errors: th.Tensor


class Networks(NamedTuple):
    """A policy's parts; ``actor`` and ``critic`` hold their optimisers.

    An actor computes ``distribution(observations, exact=)``; a critic is a
    :class:`sb3_pmpo.critics.Critic`.
    """

    actor: Any
    reference_actor: Any
    critic: Any
    critic_target: Any


class Learner:
    """Updates critics and policy on batches; on a GPU as a CUDA graph, if asked for.

    :param networks: the actor and its lagged reference, the critic and its target.
    :param objective: of the policy's steps.
    :param device: where the networks are.
    :param capture: run the update as a CUDA graph.
    """

    def __init__(
        self, networks: Networks, objective: Objective, device: th.device, *, capture: bool = False
    ) -> None:
        self.actor, self.reference_actor, self.critic, self.critic_target = networks
        self.objective = objective
        self.device = device
        self.critic_lag = LaggedCopy(self.critic, self.critic_target)
        self.reference_lag = LaggedCopy(self.actor, self.reference_actor)
        self.graphs = self._make_graphs() if capture and device.type == "cuda" else None
        self.prepare_optimizers()
        for optimizer in self.optimizers():
            optimizer.register_load_state_dict_post_hook(lambda _: self.prepare_optimizers())

    def _make_graphs(self) -> CudaGraphs[Batch, Plan, Updated] | None:
        if not all(map(is_capturable, self.optimizers())):
            warnings.warn(
                f"compile=True runs without CUDA graphs with {type(self.actor.optimizer).__name__}:"
                " torch's Adam, AdamW or RMSprop can be captured",
                stacklevel=2,
            )
            return None
        return CudaGraphs(self.update, self.device)

    def optimizers(self) -> list[th.optim.Optimizer]:
        """List the optimisers of actor, critic and duals."""
        duals = [] if self.objective.duals is None else [self.objective.duals.optimizer]
        return [self.actor.optimizer, self.critic.optimizer, *duals]

    def prepare_optimizers(self) -> None:
        """Bring the optimisers, new or loaded, to the way in which the update runs."""
        for optimizer in self.optimizers():
            set_capturable(optimizer, None if self.graphs is None else self.device)
        self.forget_graphs()

    def forget_graphs(self) -> None:
        """Capture anew from here on: something that a graph does not read has changed."""
        if self.graphs is not None:
            self.graphs.clear()

    def set_learning_rates(self, critic_rate: float, actor_rate: float) -> None:
        """Set the rates of the optimisers; the duals keep theirs."""
        if self.graphs is not None and any(map(has_plain_rate, self.optimizers())):
            self.prepare_optimizers()  # somebody has put a number there, which no graph reads
        set_learning_rate(self.critic.optimizer.param_groups[0], critic_rate)
        for group in self.actor.optimizer.param_groups:
            set_learning_rate(group, actor_rate)

    def __call__(self, batch: Batch, plan: Plan) -> Updated:
        """Run :meth:`update`, as a graph where there are graphs."""
        return (self.graphs or self.update)(batch, plan)

    def update(self, batch: Batch, plan: Plan) -> Updated:
        """Update critics and policy as planned, each time on the next part of the batch.

        TD targets are computed for the whole batch. It serves as many updates as share a policy
        update; the lagged networks hardly move meanwhile, and one call costs half of what four do.
        """
        self.scale_rates()
        targets = self.td_target(batch, plan.pessimism)
        size = len(targets) // len(plan.updates)
        metrics, errors = [], []
        for start, moves in zip(range(0, len(targets), size), plan.updates, strict=True):
            rows = slice(start, start + size)
            part = batch.map(itemgetter(rows))
            of_critic, of_rows = self.critic_step(part, targets[rows])
            metrics.append(of_critic)
            errors.append(of_rows)
            if moves.policy:
                metrics.append(self.improve(part.observations, plan.n_samples))
            self.critic_lag.move(moves.tau)
            if moves.reference_tau:
                self.reference_lag.move(moves.reference_tau)
        return Updated(metrics, th.cat(errors))

    def improve(self, observations: Observations, n_samples: int) -> Metrics:
        """Let the reference propose, the critics score, and the policy take its step."""
        reference, candidates = self.propose(observations, n_samples)
        online = self.actor.distribution(observations)
        stepped = policy_step(self.objective, [self.actor.optimizer], online, reference, candidates)
        return stepped | sample_metrics(reference, candidates)

    # ------------------------------------------------------------------ its parts

    def propose(self, observations: Observations, n_samples: int) -> tuple[Any, Candidates]:
        """Let the reference propose what the policy step labels, by the target critic's scores.

        :return: the reference's distribution and its scored samples.
        """
        reference, actions, weights, scores = self._score(observations, n_samples, exact=True)
        return reference, Candidates(
            scores,
            actions,
            weights,
            outside=reference.overshoot(actions),
            value=partial(self.value, observations),
            n_samples=n_samples,
            unit=self.critic.scale,
            each=partial(self._score_each, observations, actions),
        )

    @th.no_grad()
    def _score(self, observations: Observations, n_samples: int, *, exact: bool) -> Any:
        # The reference's body is float32 where a KL to it follows.
        reference = self.reference_actor.distribution(observations, exact=exact)
        actions, weights = reference.propose(n_samples)
        return reference, actions, weights, self.critic_target.score(observations, actions)

    @th.no_grad()
    def _score_each(self, observations: Observations, actions: th.Tensor) -> th.Tensor:
        return self.critic_target.score_each(observations, actions)

    def value(self, observations: Observations) -> th.Tensor:
        """Estimate the reference's expected value ``[B]`` from fresh samples."""
        _, _, weights, scores = self._score(observations, BASELINE_SAMPLES, exact=False)
        return (weights * scores).sum(0)

    @th.no_grad()
    def td_target(self, batch: Batch, pessimism: float) -> th.Tensor:
        """Bootstrap from what the reference does next; ``[B, K]`` in units of the reward."""
        observations = batch.next_observations
        reference = self.reference_actor.distribution(observations, exact=False)
        actions, weights = reference.propose(BOOTSTRAP_SAMPLES)
        following = self.critic_target.bootstrap(observations, actions, weights, pessimism)
        return td_target(batch.rewards, batch.dones, batch.discounts, following)

    def critic_step(self, batch: Batch, target: th.Tensor) -> tuple[Metrics, th.Tensor]:
        """Take one step of the critic.

        :param target: ``[B, K]`` of :meth:`td_target`.
        :return: what to log, and the absolute TD errors ``[B]``.
        """
        loss = self.critic.loss(batch, target, batch.weights)
        optimizer, metrics = self.critic.optimizer, dict(loss.metrics)
        optimizer.zero_grad()
        roots, gradients = [loss.outputs], [loss.gradient]
        if loss.auxiliary is not None:
            roots, gradients = [*roots, loss.auxiliary], [*gradients, None]
            metrics["auxiliary_loss"] = loss.auxiliary.detach()
        th.autograd.backward(roots, gradients)
        metrics["critic_grad_norm"] = grad_norm([optimizer])
        optimizer.step()
        return metrics, loss.errors

    def scale_rates(self) -> None:
        """Give each group of the critic its learning rate, as the critic scales it."""
        groups: Sequence[Any] = self.critic.optimizer.param_groups
        rate = groups[0]["lr"]
        for group, scale in zip(groups[1:], self.critic.rate_scales()[1:], strict=True):
            if self.graphs is None:
                scale = float(scale)
            set_learning_rate(group, rate * scale)
