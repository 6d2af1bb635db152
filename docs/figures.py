"""Draw the figures of the documentation: ``python docs/figures.py``.

``alpha.png`` and ``beta.png`` are computed by the package's own losses, ``beside-peers.png`` and
``benchmarks/results/peers_walker-walk.png`` from the committed rows of the development set and of
the peers.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch as th
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sb3_pmpo import Candidates, top_k
from sb3_pmpo.distributions import DiagGaussian
from sb3_pmpo.learner import policy_step
from sb3_pmpo.objectives import PMPOObjective

ROOT = Path(__file__).parent.parent
IMAGES = ROOT / "docs" / "images"
RUNS = ROOT / "benchmarks" / "results" / "runs"
#: alpha and beta of the three settings that have one expected gradient.
SETTINGS = {
    "accepted only: alpha 1, beta 0": (1.0, 0.0, "C0"),
    "rejected only: alpha 0, beta 2": (0.0, 2.0, "C3"),
    "both: alpha 0.5, beta 1": (0.5, 1.0, "C2"),
}
BETAS = (0.5, 1.0, 1.5, 2.0, 4.0)
#: How the documentation names what the suite of peers has.
PEERS = {
    "PMPO-without-embeddings": "PMPO without embeddings",
    "SAC": "SB3 SAC",
    "TQC": "sb3-contrib TQC",
    "CrossQ": "sb3-contrib CrossQ",
    "SBX-SAC": "SBX SAC",
    "SBX-CrossQ": "SBX CrossQ",
    "SBX-SAC-SimBa": "SBX SAC, SimBa",
}


def gradients(alpha: float, beta: float, n_states: int = 20_000) -> np.ndarray:
    """Estimate a Gaussian's gradient of the mean from 4 samples of a state, many times.

    The policy has moved half a std away from its reference, so that the KL has a gradient.
    """
    mean = th.full((n_states, 1), 0.5, requires_grad=True)
    policy = DiagGaussian(mean, th.ones(n_states, 1))
    reference = DiagGaussian(th.zeros(n_states, 1), th.ones(n_states, 1))
    actions = reference.sample(4)
    candidates = Candidates(scores=actions[..., 0], actions=actions)
    objective = PMPOObjective(alpha, beta, beta, top_k(2), decoupled=False)
    objective(policy, reference, candidates).loss.sum().backward()
    assert mean.grad is not None  # backward has just filled it
    return -mean.grad[:, 0].numpy()


def draw_alpha(path: Path) -> None:
    """Show one expected gradient and three noises."""
    figure = Figure(figsize=(7.2, 3.2), layout="constrained")
    axis = figure.subplots()
    for label, (alpha, beta, colour) in SETTINGS.items():
        drawn = gradients(alpha, beta)
        text = f"{label}; mean {drawn.mean():.2f}, std {drawn.std():.2f}"
        bins = np.linspace(-2.5, 3.5, 90).tolist()
        axis.hist(drawn, bins=bins, density=True, histtype="step", color=colour, label=text)
        axis.axvline(drawn.mean(), color=colour, linestyle=":", linewidth=1)
    axis.set(xlabel="step of the mean towards better actions, from 4 samples", yticks=[])
    axis.legend(fontsize="small", loc="upper right")  # beside the line at the means
    axis.set_ylim(top=1.45 * axis.get_ylim()[1])
    figure.savefig(path, dpi=110)


def path_of(beta: float, n_updates: int = 400) -> tuple[list[float], list[float]]:
    """Return std and mean of a Gaussian that learns from rejected samples alone.

    Its reference is held at mean 0 and std 1. The better a sample, the larger its action.
    """
    mean = th.zeros(1, requires_grad=True)
    log_std = th.zeros(1, requires_grad=True)
    optimizer = th.optim.Adam([mean, log_std], lr=0.02)
    reference = DiagGaussian(th.zeros(1024, 1), th.ones(1024, 1))
    objective = PMPOObjective(0.0, beta, beta, top_k(2), decoupled=False)
    stds, means = [], []
    for _ in range(n_updates):
        policy = DiagGaussian(mean.expand(1024, 1), log_std.exp().expand(1024, 1))
        actions = reference.sample(4)
        candidates = Candidates(scores=actions[..., 0], actions=actions)
        policy_step(objective, [optimizer], policy, reference, candidates)
        with th.no_grad():
            log_std.clamp_(min=float(np.log(0.1)))  # a floor, as the policy's std_min
        stds.append(float(log_std.detach().exp()))
        means.append(float(mean.detach()))
    return stds, means


def draw_beta(path: Path) -> None:
    """Show which weights of the KL hold a policy that is only pushed away."""
    figure = Figure(figsize=(7.2, 3.0), layout="constrained")
    left, right = figure.subplots(1, 2)
    for number, beta in enumerate(BETAS):
        stds, means = path_of(beta)
        colour = f"C{number}"
        left.plot(stds, color=colour, label=f"beta {beta:g}")
        right.plot(means, color=colour, label=f"beta {beta:g}")
    left.set(xlabel="updates", ylabel="std", yscale="log")
    right.set(xlabel="updates", ylabel="mean (higher is better)")
    right.legend(fontsize="small")
    for axis in (left, right):
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def draw_beside_peers(path: Path) -> None:
    """Draw the mean return of the six tasks against steps, and walker-walk against minutes."""
    figure = Figure(figsize=(7.6, 3.4), layout="constrained")
    left, right = cast(Any, figure.subplots(1, 2, sharey=True))
    data = pd.concat([pd.read_csv(file) for file in sorted((RUNS / "development").glob("*.csv"))])
    n_tasks = data.task.nunique()
    for name in sorted(data.algorithm.unique()):
        by = data[data.algorithm == name].groupby(["seed", "steps"])
        returns = by.return_mean.mean()[by.task.nunique() == n_tasks].unstack("seed").dropna()
        if name not in PEERS or returns.empty:
            continue
        low, high, x = returns.min(axis=1), returns.max(axis=1), returns.index / 1000
        colour = f"C{list(PEERS).index(name)}"
        left.plot(x, returns.mean(axis=1), color=colour)
        left.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
    left.set(xlabel="environment steps, thousands", ylabel="return", ylim=(0, 1000))
    left.set_title("mean of six tasks, three seeds", fontsize="medium")
    draw_minutes(right)
    right.set_title("walker-walk, one run each", fontsize="medium")
    for axis in (left, right):
        axis.grid(alpha=0.3)
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    figure.savefig(path, dpi=110)


def runs_of_peers() -> Iterator[tuple[str, pd.DataFrame]]:
    """Return the rows of each peer on walker-walk by its name in the documentation.

    Their ``minutes`` are those of ``benchmarks.minutes``, where the algorithms take turns: the runs
    themselves had company.
    """
    minutes = pd.read_csv(RUNS.parent / "minutes.csv").groupby("algorithm").minutes_of_100k.median()
    for name, label in PEERS.items():
        run = pd.read_csv(RUNS / "peers" / f"{name}__walker-walk__0.csv")
        yield label, run.assign(minutes=run.steps / 1e5 * float(minutes[name]))


def draw_minutes(axis: Axes) -> None:
    """Draw one run of each peer against its minutes."""
    for number, (label, run) in enumerate(runs_of_peers()):
        axis.plot(run.minutes, run.return_mean, color=f"C{number}", label=label)
    axis.set(xlabel="minutes of training, one thread", xscale="log", ylim=(0, 1000))
    axis.set_xticks([1, 2, 5, 10, 20, 50], ["1", "2", "5", "10", "20", "50"])
    axis.minorticks_off()


def draw_peers(path: Path) -> None:
    """Draw one run of each peer on walker-walk, against steps and against its minutes."""
    figure = Figure(figsize=(7.2, 3.2), layout="constrained")
    left, right = cast(Any, figure.subplots(1, 2, sharey=True))
    for number, (label, run) in enumerate(runs_of_peers()):
        left.plot(run.steps / 1e3, run.return_mean, color=f"C{number}", label=label)
    left.set(xlabel="environment steps, thousands", ylabel="return on walker-walk, one run")
    draw_minutes(right)
    for axis in (left, right):
        axis.grid(alpha=0.3)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Draw all."""
    th.manual_seed(0)
    IMAGES.mkdir(exist_ok=True)
    draw_alpha(IMAGES / "alpha.png")
    draw_beta(IMAGES / "beta.png")
    draw_beside_peers(IMAGES / "beside-peers.png")
    draw_peers(RUNS.parent / "peers_walker-walk.png")


if __name__ == "__main__":
    main()
