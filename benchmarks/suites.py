"""What to run, as data: tasks x algorithms x seeds, by the name of a suite.

An algorithm's name starts with its class, ``PMPO-S4`` is a PMPO; its arguments go to the
constructor, over the setting that ships (zoo_configs), and are what JSON and the configurations
can hold: ``{"labeller": "top_k(2)", "beta": [1, 20]}``; ``policy`` is one of them.

A task's name is one of the Control Suite's, ``walker-walk``, or a Gymnasium id, ``Hopper-v5``. With
``@3`` behind it each actuator has 3 forces to choose from: MultiDiscrete, or one Discrete for
algorithms that have no MultiDiscrete.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

Arguments = dict[str, Any]

DEVELOPMENT = ("cartpole-swingup", "finger-spin", "walker-walk", "walker-run", "cheetah-run",
               "quadruped-walk")  # fmt: skip
THREE = ("cartpole-swingup", "walker-walk", "cheetah-run")
#: The tasks that published comparisons share.
TASKS_28 = ("acrobot-swingup", "ball_in_cup-catch", "cartpole-balance", "cartpole-balance_sparse",
            "cartpole-swingup", "cartpole-swingup_sparse", "cheetah-run", "dog-run", "dog-stand",
            "dog-trot", "dog-walk", "finger-spin", "finger-turn_easy", "finger-turn_hard",
            "fish-swim", "hopper-hop", "hopper-stand", "humanoid-run", "humanoid-stand",
            "humanoid-walk", "pendulum-swingup", "quadruped-run", "quadruped-walk", "reacher-easy",
            "reacher-hard", "walker-run", "walker-stand", "walker-walk")  # fmt: skip


class Task(NamedTuple):
    """A task with a schedule of its own: steps, and environment steps of a decision."""

    name: str
    action_repeat: int
    steps: int | None = None


class Run(NamedTuple):
    """One training run and how often it is evaluated; steps are environment steps."""

    suite: str
    algorithm: str
    task: str
    seed: int
    arguments: Arguments
    steps: int
    interval: int = 5_000
    episodes: int = 5
    last_episodes: int = 20
    action_repeat: int = 2

    @property
    def name(self) -> str:
        """Name the run within its suite, as its files are."""
        return f"{self.algorithm}__{self.task}__{self.seed}"


@dataclass(frozen=True)
class Suite:
    """Tasks x algorithms x seeds.

    :param tasks: their names, or tasks with what differs from the suite's.
    :param algorithms: the constructor's arguments of each, by name.
    :param baseline: the algorithm that the report compares the others with.
    :param seeds: of the runs.
    :param steps: environment steps of a run, each repeat of an action counted.
    :param interval: environment steps between evaluations.
    :param episodes: of an evaluation; a run's last one has ``last_episodes``, its score.
    :param action_repeat: environment steps of a decision, the same for every algorithm.
    """

    tasks: tuple[str | Task, ...]
    algorithms: dict[str, Arguments]
    baseline: str
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 100_000
    interval: int = 5_000
    episodes: int = 5
    last_episodes: int = 20
    action_repeat: int = 2

    def runs(self, name: str) -> list[Run]:
        """List the runs, seed 0 of everything first, so that a part of them is a whole picture.

        :param name: of the suite, under which its results lie.
        """
        evaluation = (self.interval, self.episodes, self.last_episodes)
        tasks = [Task(x, self.action_repeat) if isinstance(x, str) else x for x in self.tasks]
        return [
            Run(name, algorithm, task.name, seed, arguments, task.steps or self.steps, *evaluation,
                task.action_repeat)
            for seed, task, (algorithm, arguments) in product(
                self.seeds, tasks, self.algorithms.items()
            )
        ]  # fmt: skip

    def with_variants(self, variants: dict[str, Arguments]) -> Suite:
        """Return the suite with more algorithms."""
        return dataclasses.replace(self, algorithms=self.algorithms | variants)

    def only(self, **changes: Any) -> Suite:
        """Return the suite with other values where one is given, not None.

        ``algorithms`` and ``tasks`` are names, of which the suite's arguments and schedules are
        kept; ``steps`` are those of every task.
        """
        changes = {name: value for name, value in changes.items() if value is not None}
        if "algorithms" in changes:
            unknown = set(changes["algorithms"]) - self.algorithms.keys()
            if unknown:
                raise ValueError(
                    f"no algorithm {sorted(unknown)} in this suite, which has "
                    f"{sorted(self.algorithms)}: add it with --variant"
                )
            changes["algorithms"] = {name: self.algorithms[name] for name in changes["algorithms"]}
        known = {task.name: task for task in self.tasks if isinstance(task, Task)}
        tasks = tuple(known.get(task, task) for task in changes.get("tasks", self.tasks))
        if "steps" in changes:
            tasks = tuple(x._replace(steps=None) if isinstance(x, Task) else x for x in tasks)
        return dataclasses.replace(self, **changes | {"tasks": tasks})


def _ablation(variants: dict[str, Arguments]) -> Suite:
    """Each variant alone against what PMPO is without it, on three tasks at 50k."""
    return Suite(THREE, {"PMPO": {}} | variants, baseline="PMPO", steps=50_000)


def _without_embeddings(algorithms: dict[str, Arguments]) -> dict[str, Arguments]:
    """Give each the critics and the updates that were the default when its suite was run."""
    before: Arguments = {
        "gradient_steps": 4, "policy_delay": 4, "tau": 0.005, "reference_tau": 0.005,
        "pessimism": 0.5,
    }  # fmt: skip
    return {
        name: before
        | given
        | {"policy_kwargs": {"critic_class": "QuantileCritic"} | given.get("policy_kwargs", {})}
        for name, given in algorithms.items()
    }


#: The first default with a Box, by the name that its rows have.
_FIRST_DEFAULT = _without_embeddings({"PMPO-without-embeddings": {}})

#: The KL weights of accept-and-reject in figure 2, for the mean and for what spreads. On an even
#: split, accept-only with beta - 1 and reject-only with beta + 1 have the same expected gradient as
#: accept-and-reject with beta (`instability` in core/losses.py): they differ in variance alone.
FIGURE2_BETA = (1.0, 20.0)
#: The paper's labels, and nothing but the loss: no barrier.
_HALVES: Arguments = {"labeller": "top_k(3)", "edge_barrier": 0.0}
_FIGURE2: dict[str, Arguments] = {
    "PMPO-AR": _HALVES | {"beta": list(FIGURE2_BETA)},
    "PMPO-A": _HALVES | {"alpha": 1.0, "beta": [beta - 1.0 for beta in FIGURE2_BETA]},
    "PMPO-R": _HALVES | {"alpha": 0.0, "beta": [beta + 1.0 for beta in FIGURE2_BETA]},
    "PMPO-BW": _HALVES | {"beta": list(FIGURE2_BETA), "labeller": "top_k(1)"},
    "MPO": {},
    "DPO": {"n_samples": 6},
}
FIGURE2_GROUPS = {
    "Gaussian": _without_embeddings(_FIGURE2),
    "discretised": _without_embeddings(
        {
            f"{name}-D": {"policy_kwargs": {"n_bins": 11}} | arguments
            for name, arguments in _FIGURE2.items()
        }
    ),
}

#: The variants of figure 3 by their alpha, and the KL weights that it sweeps.
FIGURE3_ALPHAS = {"AR": 0.5, "A": 1.0, "R": 0.0}
FIGURE3_BETAS = (0.0, 0.5, 1.0, 1.5, 2.0)


def figure3_name(variant: str, beta: float) -> str:
    """Name the algorithm of a variant, ``"AR"``, ``"A"`` or ``"R"``, at a KL weight."""
    return f"PMPO-{variant}-beta{beta:g}"


SUITES: dict[str, Suite] = {
    "development": Suite(
        DEVELOPMENT,
        {
            "PMPO": {},
            "SAC": {},
            # The default before, and the one before that.
            "PMPO-pessimism-0.5": {"pessimism": 0.5},
            "PMPO-two-updates": {
                "gradient_steps": 2,
                "tau": 0.01,
                "reference_tau": 0.01,
                "pessimism": 0.5,
            },
        }
        | _FIRST_DEFAULT,
        baseline="SAC",
    ),
    "suite28": Suite(
        TASKS_28, {"PMPO": {}}, baseline="PMPO", seeds=(0, 1), steps=200_000, interval=10_000
    ),
    # For variants of the command line.
    "ablation": _ablation({}),
    # Each part alone: without it, or the other choice. More of a part than the default has
    # (trials.md) is left to --variant.
    "levers": _ablation(
        _without_embeddings(
            {
                "PMPO": {},
                # critics and their targets
                "PMPO-raw-observations": {"policy_kwargs": {"normalize_observations": False}},
                "PMPO-no-layer-norm": {"policy_kwargs": {"layer_norm": False}},
                "PMPO-one-quantile": {"policy_kwargs": {"n_quantiles": 1}},
                "PMPO-three-steps": {"n_steps": 3},
                "PMPO-mean-target": {"pessimism": 0},
                # updates of a decision, and their size
                "PMPO-one-update": {"gradient_steps": 1, "policy_delay": 1},
                "PMPO-delay1": {"policy_delay": 1},
                # labels
                "PMPO-S4": {"n_samples": 4},
                "PMPO-halves": {"labeller": "top_k(3)"},
                "PMPO-accept-only": {"alpha": 1.0},
                # the policy's step and its reference
                "PMPO-slow-mean": {"beta": [1, 100]},
                "PMPO-fast-std": {"beta": [0.2, 20]},
                "PMPO-joint-kl": {"decoupled": False},
                "PMPO-no-barrier": {"edge_barrier": 0},
                "PMPO-hard-reference": {"reference_tau": 1.0, "reference_update_interval": 100},
                # exploration
                "PMPO-white-noise": {"exploration_noise": None},
            }
        )
    ),
    "figure2": Suite(
        (*DEVELOPMENT, "humanoid-stand", "manipulator-bring_ball"),
        FIGURE2_GROUPS["Gaussian"] | FIGURE2_GROUPS["discretised"],
        baseline="MPO",
        steps=30_000,
    ),
    # The joint KL, with one weight, is what the paper sweeps.
    "figure3": Suite(
        THREE,
        _without_embeddings(
            {
                figure3_name(name, beta): _HALVES
                | {"alpha": alpha, "beta": beta, "decoupled": False}
                for (name, alpha), beta in product(FIGURE3_ALPHAS.items(), FIGURE3_BETAS)
            }
        ),
        baseline="PMPO-AR-beta1",
        steps=30_000,
    ),
    # The peers that are ahead of SAC on public curves, with their defaults, in one run with both.
    "peers": Suite(
        DEVELOPMENT,
        {"PMPO": {}, "SAC": {}, "TQC": {}, "CrossQ": {}, "SBX-SAC": {}, "SBX-CrossQ": {}}
        | {"SBX-SAC-SimBa": {"policy": "SimbaPolicy"}}
        | _FIRST_DEFAULT,
        baseline="SAC",
        seeds=(0,),
    ),
    # Where episodes end: Gymnasium's tasks, whose actions nobody repeats.
    "gymnasium": Suite(
        ("Hopper-v5", "HalfCheetah-v5", "Ant-v5"),
        {"PMPO": {}, "SAC": {}},
        baseline="SAC",
        action_repeat=1,
    ),
    # Where nothing is known to depend on the action for long.
    "sparse": Suite(
        (
            *("cartpole-swingup_sparse", "acrobot-swingup_sparse"),
            Task("MountainCarContinuous-v0", 1, 10_000),
        ),
        {"PMPO": {}, "SAC": {}},
        baseline="SAC",
        steps=50_000,
    ),
    "discrete": Suite(
        (
            *(Task(name, 1) for name in ("CartPole-v1", "Acrobot-v1")),
            Task("MountainCar-v0", 1, 100_000),
            Task("ball_in_cup-catch@3", 2, 40_000),
        ),
        {"PMPO": {}, "DQN": {}, "QR-DQN": {}, "PPO": {}},
        baseline="DQN",
        steps=20_000,
        interval=2_000,
    ),
}
