"""Updates per second, with the environment steps they come with: PMPO beside its peers.

    python -m benchmarks.throughput --rounds 15
    python -m benchmarks.throughput --rounds 5 --steps 500 --device cuda

One process on one core (beside a GPU: on all cores, torch with one thread), equal widths and
batch, a task with 24 observations and 6 actions (walker-walk). One update an environment step for
everyone, and PMPO and the two SACs once more with four. PMPO is there without embeddings, which no
peer has, and with a policy update for each four of the critics, the default of discrete actions.
The algorithms take turns, so that a slow spell of the machine hits them all; figures are medians
over the rounds, to be compared as ratios within one run. Nothing else may run meanwhile.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch as th

from benchmarks.models import make_task
from benchmarks.provenance import provenance
from benchmarks.suites import SUITES
from sb3_pmpo.learner import BOOTSTRAP_SAMPLES
from sb3_pmpo.networks import fastest_dtype
from sb3_pmpo.replay import Replay
from sb3_pmpo.tools.settings import merge, to_arguments

RESULTS = Path(__file__).parent / "results"
WIDTHS, BATCH, OBSERVATIONS, ACTIONS = [256, 256], 256, 24, 6
FOUR = ", 4 updates a step"
COMPILED = ", compiled"


def take_one_core() -> int:
    """Stay on one core from here on, before JAX, which is for the CPU then, counts them."""
    core = sorted(os.sched_getaffinity(0))[0]
    os.sched_setaffinity(0, {core})
    os.environ["JAX_PLATFORMS"] = "cpu"
    return core


def make_models(names: list[str], device: str) -> dict[str, Any]:
    """Make each with its defaults, but for widths, batch, warm-up and updates; see the module."""
    import sb3_contrib
    import sbx
    import stable_baselines3

    import sb3_pmpo

    classes = {
        "PMPO": sb3_pmpo.PMPO,
        "SB3 SAC": stable_baselines3.SAC,
        "SB3-contrib TQC": sb3_contrib.TQC,
        "SBX SAC": sbx.SAC,
        "SBX TQC": sbx.TQC,
    }
    return {
        name: classes[name.removesuffix(FOUR).removesuffix(COMPILED)](
            "MlpPolicy",
            make_task("walker-walk", 1),
            batch_size=BATCH,
            buffer_size=100_000,
            learning_starts=100,
            train_freq=1,
            seed=0,
            device=device,
            **merge(
                to_arguments(SUITES["development"].algorithms["PMPO-without-embeddings"])
                if name.startswith("PMPO")
                else {},
                {"policy_kwargs": {"net_arch": WIDTHS}},
                {"gradient_steps": 4 if name.endswith(FOUR) else 1},
                {"compile": True} if COMPILED in name else {},
            ),
        )
        for name in names
    }


def gemm_rate(dtype: th.dtype, seconds: float = 0.5) -> float:
    """Measure GFLOP/s of the batched product that the critics' hidden layer is."""
    x = th.randn(2, BATCH, 256).to(dtype)
    w = th.randn(2, 256, 256).to(dtype)
    flops = 2 * x.numel() * 256
    times = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        started = time.perf_counter()
        th.bmm(x, w)
        times.append(time.perf_counter() - started)
    return flops / statistics.median(times) / 1e9


def mlp_flops(inputs: int, outputs: int, batch: int) -> int:
    """Count the multiply-adds, twice, of one forward pass."""
    widths = [inputs, *WIDTHS, outputs]
    return 2 * batch * sum(a * b for a, b in itertools.pairwise(widths))


def pmpo_floor_ms(model: Any) -> dict[str, float]:
    """Compute the least time that PMPO's matrix products take at the measured GEMM rates.

    Forward and backward cost three times a forward pass (the first layer's input needs no
    gradient, which this ignores). Each update trains the critics and bootstraps; one in
    ``policy_delay`` also ranks and trains the policy. Scoring runs in its own dtype.
    """
    critics, delay = 2, model.policy_delay
    actor = mlp_flops(OBSERVATIONS, 2 * ACTIONS, BATCH)
    critic = critics * mlp_flops(OBSERVATIONS + ACTIONS, 1, BATCH)
    fast = fastest_dtype(model.device, WIDTHS)
    rate = {dtype: gemm_rate(dtype) for dtype in (th.float32, fast)}
    scoring = (BOOTSTRAP_SAMPLES + model.n_samples / delay) * critic
    training = 3 * critic + actor + (3 + 1) * actor / delay
    return {
        "gemm_float32_gflops": rate[th.float32],
        "gemm_scoring_gflops": rate[fast],
        "train_gflop": training / 1e9,
        "scoring_gflop": scoring / 1e9,
        "floor_ms": 1e3 * (training / rate[th.float32] + scoring / rate[fast]) / 1e9,
    }


def update_breakdown(model: Any, n: int = 200) -> dict[str, float]:
    """Time the parts of an update; medians in milliseconds."""
    model.policy.set_training_mode(True)
    times: dict[str, list[float]] = {}

    def timed(name: str, call: Callable[..., Any], *arguments: Any) -> Any:
        started = time.perf_counter()
        result = call(*arguments)
        times.setdefault(name, []).append(1e3 * (time.perf_counter() - started))
        return result

    learner, replay = model.learner, Replay(model.replay_buffer, model.n_steps, model.gamma)
    n_samples, pessimism = model.n_samples, model.pessimism
    for _ in range(n):
        batch = timed("sample", replay.sample, BATCH)
        seen = batch.observations
        target = timed("td_target", learner.td_target, batch, pessimism)
        timed("critic_step", learner.critic_step, batch, target)
        timed("rank", learner.propose, seen, n_samples)
        timed("policy_step", learner.improve, seen, n_samples)
        timed("critic_target", learner.critic_lag.move, model.tau)
        timed("reference", learner.reference_lag.move, model.reference_tau)
    medians = {name: statistics.median(values) for name, values in times.items()}
    medians["policy_step"] -= medians["rank"]  # it ranks too: leave what is its own
    return medians


def write_rounds(
    path: Path, unit: str, found: dict[str, list[float]], about: dict[str, str]
) -> None:
    """Write a row for each round of each algorithm."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["algorithm", "round", unit, *about])
        for name, values in found.items():
            for number, value in enumerate(values):
                writer.writerow([name, number, f"{value:.2f}", *about.values()])


def main() -> None:
    """Read the command line, measure, write the CSV, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=150, help="environment steps of a turn")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--algorithms", nargs="+", help="default: all")
    options = parser.parse_args()
    os.environ.setdefault("MUJOCO_GL", "disabled")
    th.set_num_threads(1)
    on_gpu = options.device == "cuda"
    if on_gpu:
        os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
        about = {"device": th.cuda.get_device_name()}
    else:
        about = {"core": str(take_one_core())}
    about |= provenance() | {"steps_a_turn": options.steps}
    pmpo = ["PMPO", "PMPO" + COMPILED] if on_gpu else ["PMPO"]
    every = [*pmpo, "SB3 SAC", "SB3-contrib TQC", "SBX SAC", "SBX TQC"]
    every += [name + FOUR for name in (*pmpo, "SB3 SAC", "SBX SAC")]
    models = make_models(options.algorithms or every, options.device)
    for model in models.values():  # warm up: buffers, caches, compilers
        model.learn(400, log_interval=None)
    rates: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(options.rounds):
        for name, model in models.items():
            started = time.perf_counter()
            model.learn(options.steps, log_interval=None, reset_num_timesteps=False)
            # What is still under way on a GPU is the last update, of hundreds.
            updates = options.steps * model.gradient_steps
            rates[name].append(updates / (time.perf_counter() - started))
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / ("throughput_cuda.csv" if on_gpu else "throughput.csv")
    write_rounds(path, "updates_per_second", rates, about)
    base = statistics.median(rates.get("SB3 SAC") or next(iter(rates.values())))
    print(f"{'algorithm':35}{'updates/s':>10}{'ms':>8}{'of SB3 SAC':>12}")
    for name, values in rates.items():
        middle = statistics.median(values)
        print(f"{name:35}{middle:10.1f}{1e3 / middle:8.2f}{middle / base:12.2f}")
    if "PMPO" in models and not on_gpu:
        print_breakdown(models["PMPO"])
    print(f"\nwritten to {path}")


def print_breakdown(model: Any) -> None:
    """Print what each part of PMPO's update takes, and the least that its arithmetic takes."""
    print("\nPMPO's update, median ms of each part (rank and policy_step: one update in")
    print(f"{model.policy_delay}):")
    for name, value in update_breakdown(model).items():
        print(f"  {name:18}{value:8.2f}")
    print("Arithmetic floor:")
    for name, value in pmpo_floor_ms(model).items():
        print(f"  {name:22}{value:9.2f}")


if __name__ == "__main__":
    main()
