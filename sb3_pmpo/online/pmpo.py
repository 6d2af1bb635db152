"""PMPO: preference-based maximum a posteriori policy optimisation."""

from __future__ import annotations

import warnings
from numbers import Real
from typing import Any, Self, Unpack

from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule

from sb3_pmpo.core.checks import check_flag
from sb3_pmpo.core.labels import (
    Labeller,
    advantage,
    is_balanced,
    rejected_share,
    top_k,
    try_labeller,
)
from sb3_pmpo.core.losses import check_alpha_beta, least_beta
from sb3_pmpo.core.samples import Normalisation, mean_over_samples
from sb3_pmpo.feedback.buffer import FeedbackBuffer
from sb3_pmpo.feedback.learn import FeedbackSteps
from sb3_pmpo.objectives import PMPOObjective
from sb3_pmpo.offline.dataset import LabelledDataset
from sb3_pmpo.offline.learn import learn_from_labels
from sb3_pmpo.offline.run import Loop, SpacesOnly, stands_in
from sb3_pmpo.online.arguments import SharedArguments, lists_all
from sb3_pmpo.online.off_policy import OffPolicyMPO
from sb3_pmpo.online.written import as_object
from sb3_pmpo.policies import PMPOPolicy

#: The paper's S = 4, top 2 accepted, bottom 2 rejected, joint KL (Sec. 5.2), with its three pairs
#: of alpha and beta. The reference is refreshed every N updates; N = 100 is the bandits' (5.1).
PAPER: dict[str, Any] = {
    "n_samples": 4,
    "labeller": top_k(2),
    "decoupled": False,
    "edge_barrier": 0.0,
    "pessimism": 0.0,
    "reference_tau": 1.0,
    "reference_update_interval": 100,
}
PAPER_AR: dict[str, Any] = PAPER | {"alpha": 0.5, "beta": 0.5}
PAPER_A: dict[str, Any] = PAPER | {"alpha": 1.0, "beta": 0.0}
PAPER_R: dict[str, Any] = PAPER | {"alpha": 0.0, "beta": 2.0}

#: The measured best KL weights (benchmarks/trials.md): of mean and std with labels that weigh the
#: same in every state and with advantage(), and of logits.
GAUSSIAN_BETA = (1.0, 20.0)
ADVANTAGE_BETA = (0.2, 100.0)
CATEGORICAL_BETA = 5.0


def fitting_beta(
    alpha: float, beta: tuple[float, float], joint: float = 0.0
) -> tuple[float, float]:
    """Return the KL weights that fit ``alpha``, from those that were measured at 0.5.

    Below 0.5 the rejected outweigh the accepted by ``1 - 2 * alpha``. With two sets of equal size a
    KL that weighs more by as much leaves the expected gradient as it is (App. A).

    :param alpha: of the model; one that is out of its range is refused later.
    :param beta: of the mean and of the std.
    :param joint: the least weight of one KL of the whole policy.
    """
    more = max(0.0, 1.0 - 2.0 * float(alpha)) if isinstance(alpha, Real) else 0.0
    return max(beta[0] + more, joint), beta[1] + more


@lists_all
class PMPO(OffPolicyMPO):
    """Learn from accepted and rejected actions, labelled by a TD-learned critic (Eq. 10).

    What SAC and TD3 also take has their names and meaning.

    :param alpha: weight of the accepted samples, in [0, 1]; the rejected weigh ``1 - alpha``. 1
        learns from accepted samples alone, 0 from rejected ones alone.
    :param beta: weight of ``KL(reference || policy)``, >= 0: how firmly the policy is held. One
        number, or a pair for the mean and for the std; a categorical policy takes the first. None
        is the measured best: (0.2, 100) with ``advantage()``, (1, 20) with other labellers, 5 for a
        categorical policy; below ``alpha=0.5`` each plus ``1 - 2 * alpha``, which fits (App. A).
        Below ``2 * (1 - alpha)`` the push away from the rejected samples can exceed the KL, and the
        policy may collapse; a warning says so. From ``alpha=0.5`` on the mean under ``advantage()``
        is safe at any ``beta`` above 0.
    :param labeller: says who is accepted and who rejected, with what weight, from the samples'
        scores; ``top_k(2)``, or the text ``"top_k(2)"``. None for ``advantage()``, but for the
        better and the worse half with a discretised Box, with ``decoupled=False`` and below
        ``alpha=0.5``.
    :param n_samples: S, actions the reference proposes per state.
    :param decoupled: fit the mean under the reference's std and the std around its mean, each with
        a KL of its own. False fits both with one KL, as the paper does, with ``beta`` of the mean.
    :param edge_barrier: >= 0, weight of what keeps the policy from where it would learn no more; 0
        for none. Of a Gaussian it is ``-log(1 - mean^2)``, as tanh has no slope at the box's edge.
        Of a categorical policy it is ``2 * KL(uniform || policy)``, the same function if there are
        two actions: where the labels say little, all actions are tried again.
    :param _init_setup_model: build the networks now.
    :raises ValueError: for an argument out of its range, by name, value and range.
    """

    def __init__(
        self,
        policy: str | type[PMPOPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 1e-3,
        *,
        alpha: float = 0.5,
        beta: float | tuple[float, float] | None = None,
        labeller: Labeller | str | None = None,
        n_samples: int = 6,
        decoupled: bool = True,
        edge_barrier: float = 0.02,
        _init_setup_model: bool = True,
        **shared: Unpack[SharedArguments],
    ) -> None:
        super().__init__(policy, env, learning_rate, n_samples, **shared)
        self.alpha = alpha
        self.beta = beta
        self.labeller = labeller
        self.decoupled = decoupled
        self.edge_barrier = edge_barrier
        if _init_setup_model:
            self._setup_model()

    def _make_objective(self) -> PMPOObjective:
        """Choose labeller and KL weights where none are given, and try the labeller."""
        has_parts = self.actor.has_parts
        wanted = check_flag("decoupled", self.decoupled, "True fits mean and std apart")
        decoupled = wanted and has_parts
        labeller = as_object("labeller", self.labeller)
        check_alpha_beta(self.alpha, 0.0)
        if labeller is None:
            measured = wanted and (has_parts or not isinstance(self.action_space, spaces.Box))
            # Rejections that outweigh need sets of one weight in every state: ranks.
            weighs = measured and self.alpha >= 0.5
            labeller = advantage() if weighs else top_k(self.n_samples // 2)
        rejected = rejected_share(labeller, self.n_samples)
        beta: Any = self.beta
        if beta is None:
            gaussian = ADVANTAGE_BETA if decoupled and is_balanced(labeller) else GAUSSIAN_BETA
            least = 0.0 if decoupled else least_beta(self.alpha, rejected)
            usual = gaussian if has_parts else (CATEGORICAL_BETA,) * 2
            beta = fitting_beta(self.alpha, usual, least)
        pair = beta if isinstance(beta, (tuple, list)) else (beta, beta)
        if len(pair) != 2:
            raise ValueError(
                f"beta must be a number or a pair (mean, std), got {self.beta}: None is for the "
                "measured best"
            )
        mean, std = pair
        objective = PMPOObjective(
            self.alpha, mean, std, labeller, decoupled, self.edge_barrier, rejected
        )
        try_labeller(labeller, self.n_samples, get_action_dim(self.action_space), self.device)
        return objective

    # ------------------------------------------------------------------ labels that are given

    @classmethod
    def from_spaces(
        cls,
        policy: str | type[PMPOPolicy],
        observation_space: spaces.Space,
        action_space: spaces.Space,
        **kwargs: Any,
    ) -> Self:
        """Make a model without an environment, for :meth:`learn_offline`.

        To go on in an environment, give ``buffer_size`` here and the environment by ``set_env()``.

        :param policy: as of the constructor.
        :param observation_space: as the environment has it.
        :param action_space: the same.
        :param kwargs: the constructor's other arguments; ``buffer_size`` is 1 if it is not given.
        """
        env = SpacesOnly(observation_space, action_space)
        return cls(policy, env, **{"buffer_size": 1} | kwargs)

    def learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 4,
        tb_log_name: str = "run",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
        *,
        feedback: FeedbackBuffer | None = None,
        feedback_alpha: float | None = None,
    ) -> Self:
        """Learn in the environment, as SB3's algorithms do, also from labels that are given.

        :param feedback: after each step on the critic's labels the policy takes one on these, once
            there are any. Another thread, a callback or a ``FeedbackWrapper`` may add to them.
            Rejections fade as they are heeded, see :meth:`learn_offline`.
        :param feedback_alpha: in [0, 1], weight of the accepted rows of ``feedback``. None: one
            kind of labels determines it (App. A); with both it is the model's.
        :raises TypeError: for an argument of the wrong kind.
        :raises ValueError: for a number that is out of range, or if there is no environment.
        """
        if self.buffer_size == 1 and not stands_in(self.env):
            warnings.warn(
                "the replay buffer holds one transition, as of a model made by from_spaces: for "
                "learning in an environment give buffer_size to from_spaces, or to PMPO.load",
                stacklevel=2,
            )
        self._feedback, self.given_labels = None, feedback
        if feedback is not None:
            self.label_rng = None if reset_num_timesteps else self.label_rng
            self._feedback = FeedbackSteps(self, feedback, feedback_alpha)
        try:
            return super().learn(
                total_timesteps,
                callback,
                log_interval,
                tb_log_name,
                reset_num_timesteps,
                progress_bar,
            )
        finally:
            self._feedback = None

    def learn_offline(
        self,
        dataset: LabelledDataset | FeedbackBuffer,
        gradient_steps: int,
        *,
        kl: str = "data",
        alpha: float | None = None,
        beta: float | tuple[float, float] | None = None,
        normalise: Normalisation = mean_over_samples,
        clone_steps: int | None = None,
        reference_interval: int | None = None,
        callback: MaybeCallback = None,
        log_interval: int | None = 1000,
        progress_bar: bool = False,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "PMPO-offline",
    ) -> Self:
        """Learn from a labelled data set, without an environment and without a critic (Sec. 5.3).

        The observations' statistics of a new model are taken from the data. A gradient step counts
        as one of SB3's timesteps, for callbacks and logs.

        :param dataset: of which rejected, accepted or both must be labelled.
        :param gradient_steps: of the policy, on minibatches of ``batch_size`` rows.
        :param kl: where the KL comes from. ``"data"`` clones all that was done (Sec. 5.3).
            ``"reference"`` first makes a reference, then takes the closed form.
        :param alpha: None for what the labels ask for: 1 where all are accepted, 0 where all are
            rejected, else the model's (App. A).
        :param beta: weight of the KL: a number for the mean, of which the std has 20 times as much,
            or a pair for mean and std. None for ``2 * (1 - alpha)``; from rejections alone with
            ``mean_per_set`` it is that over the share of rejected rows.
        :param normalise: one of two functions of ``sb3_pmpo.core.samples``. With
            ``mean_over_samples`` a label that 1% of the rows have has 1% of the weight. With
            ``mean_per_set`` the accepted have a mean of their own and the rejected another, so
            that rare labels have their full weight (Eq. 10).
        :param clone_steps: with ``kl="reference"``, steps of behaviour cloning that make the
            reference; None for ``gradient_steps`` in a new model, and for 0 in one that has
            learned, whose policy then is the reference.
        :param reference_interval: gradient steps between copies of the policy to the reference;
            None holds it to what it was at the start. 1 is refused where rejected rows count.
            Rejections fade as they are heeded: one counts by how much of what it rejects the
            reference does, in units of what it did when the row was first learned from.
        :param callback: SB3's; called after each gradient step.
        :param log_interval: gradient steps between two lines of the log; None for none.
        :param progress_bar: show one.
        :param reset_num_timesteps: begin anew. False goes on, with the reference that there is.
        :param tb_log_name: of the run in TensorBoard's folder.
        :raises DatasetError: if the data set is not of the model's spaces, or has no labels.
        :raises ValueError: if one Gaussian for all states lowers the loss without end.
        :warns UserWarning: if a policy that tells rejected rows from others may do so.
        """
        loop = Loop(
            gradient_steps, callback, log_interval, progress_bar, reset_num_timesteps, tb_log_name
        )
        self.given_labels = dataset if isinstance(dataset, FeedbackBuffer) else None
        learn_from_labels(
            self,
            dataset,
            loop,
            kl=kl,
            alpha=alpha,
            beta=beta,
            normalise=normalise,
            clone_steps=clone_steps,
            reference_interval=reference_interval,
        )
        return self

    def learn_from_feedback(
        self,
        feedback: FeedbackBuffer,
        gradient_steps: int,
        *,
        kl: str = "reference",
        tb_log_name: str = "PMPO-feedback",
        **arguments: Any,
    ) -> Self:
        """Learn from given labels alone: no reward, no critic.

        Meanwhile steps count from 0, and afterwards the steps that were taken before count again:
        :meth:`learn` with ``reset_num_timesteps=False`` goes on without random actions.

        :param feedback: may grow meanwhile.
        :param gradient_steps: of the policy.
        :param kl: ``"reference"`` holds the policy to what it is now, in closed form and with the
            weight ``beta``. From acceptances alone ``beta`` is 0, which is cloning: give 1 or more,
            and the policy stays what it is where nothing was accepted.
        :param tb_log_name: of the run in TensorBoard's folder.
        :param arguments: the others of :meth:`learn_offline`, such as ``alpha``, ``callback`` and
            ``reference_interval``; ``clone_steps`` is 0 if it is not given.
        """
        names: dict[str, Any] = {"kl": kl, "tb_log_name": tb_log_name, "clone_steps": 0}
        before, learned = self.num_timesteps, self._n_updates
        try:
            self.learn_offline(feedback, gradient_steps, **names | arguments)
        finally:  # also where Ctrl-C stops it
            if "reset_num_timesteps" not in arguments:
                self.num_timesteps = before + self._n_updates - learned
            self.stored_steps = self.num_timesteps
        return self
