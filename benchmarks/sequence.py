"""Memory and speed of ``core.sequence`` beside a plain log-softmax and TRL's selective one.

    python -m benchmarks.sequence --tokens 1024 --vocabulary 131072 --rounds 5

All take turns in one process, on one thread, forward and backward; figures are medians, to be
compared as ratios within one run. Memory is what a fresh process adds, at its peak, to the tensors
that the model itself makes: logits, reference logits.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch as th

from benchmarks.provenance import provenance
from sb3_pmpo.core.sequence import sequence_kl, sequence_log_prob, sequence_terms

RESULTS = Path(__file__).parent / "results"
Problem = tuple[th.Tensor, th.Tensor, th.Tensor, th.Tensor]


def plain_log_prob(logits: th.Tensor, tokens: th.Tensor) -> th.Tensor:
    """Compute ``log_softmax``, then gather."""
    return logits.log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1).sum(-1)


def plain_kl(logits: th.Tensor, reference: th.Tensor) -> th.Tensor:
    """Compute both ``log_softmax``, then the sum over the vocabulary."""
    log_pi, log_ref = logits.log_softmax(-1), reference.log_softmax(-1)
    return (log_ref.exp() * (log_ref - log_pi)).sum((-1, -2))


def trl_log_prob(logits: th.Tensor, tokens: th.Tensor) -> th.Tensor:
    """Call TRL's."""
    from trl.trainer.utils import selective_log_softmax

    return selective_log_softmax(logits, tokens).sum(-1)


def ours_both(*problem: th.Tensor) -> th.Tensor:
    """Compute log-probability and KL in one pass."""
    logits, reference, tokens, mask = problem
    return sum(sequence_terms(logits, reference, tokens, mask), th.zeros(()))


CALLS: dict[str, Callable[[th.Tensor, th.Tensor, th.Tensor, th.Tensor], th.Tensor]] = {
    "log_prob: ours": lambda z, r, t, m: sequence_log_prob(z, t, m),
    "log_prob: plain": lambda z, r, t, m: plain_log_prob(z, t),
    "log_prob: TRL": lambda z, r, t, m: trl_log_prob(z, t),
    "kl: ours": lambda z, r, t, m: sequence_kl(z, r, m),
    "kl: plain": lambda z, r, t, m: plain_kl(z, r),
    "both: ours": ours_both,
    "both: plain": lambda z, r, t, m: plain_log_prob(z, t) + plain_kl(z, r),
}


def problem(tokens: int, vocabulary: int) -> Problem:
    """Make one sequence."""
    generator = th.Generator().manual_seed(0)
    logits, reference = (th.randn(1, tokens, vocabulary, generator=generator) for _ in range(2))
    chosen = th.randint(vocabulary, (1, tokens), generator=generator)
    return logits.requires_grad_(), reference, chosen, th.ones(1, tokens, dtype=th.bool)


def peak_mib() -> float:
    """Return the process's peak of resident memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def memory(name: str, tokens: int, vocabulary: int) -> tuple[float, float]:
    """Return MiB above the model's own tensors: at the end of the forward pass, and in all."""
    th.set_num_threads(1)
    small = problem(2, 8)
    CALLS[name](*small).sum().backward()
    given = problem(tokens, vocabulary)
    before = peak_mib()
    result = CALLS[name](*given)
    forward = peak_mib() - before
    result.sum().backward()
    return forward, peak_mib() - before


def main() -> None:
    """Read the command line, measure, write the CSV, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--vocabulary", type=int, default=131_072)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", nargs="+", choices=CALLS, default=[*CALLS])
    options = parser.parse_args()
    th.set_num_threads(1)
    calls = {name: CALLS[name] for name in options.calls}
    size = (options.tokens, options.vocabulary)
    peaks = {}
    for name in calls:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            peaks[name] = pool.apply(memory, (name, *size))
    given = problem(*size)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(options.rounds):
        for name, call in calls.items():
            given[0].grad = None
            started = time.perf_counter()
            call(*given).sum().backward()
            seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    logits_mib = options.tokens * options.vocabulary * 4 / 2**20
    about = {"tokens": options.tokens, "vocabulary": options.vocabulary, **provenance()}
    with (RESULTS / f"sequence_{options.tokens}.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["call", "median_seconds", "rounds", "forward_mib", "peak_mib",
                         "logits_mib", *about])  # fmt: skip
        for name, value in medians.items():
            forward, peak = peaks[name]
            writer.writerow([name, f"{value:.3f}", options.rounds, f"{forward:.0f}", f"{peak:.0f}",
                             f"{logits_mib:.0f}", *about.values()])  # fmt: skip
    print(
        f"logits: {logits_mib:.0f} MiB\n{'':18}{'s':>8}{'of plain':>10}{'forward':>10}{'peak':>8}"
    )
    for name, value in medians.items():
        base = medians.get(name.partition(":")[0] + ": plain", float("nan"))
        forward, peak = (part / logits_mib for part in peaks[name])
        print(f"{name:18}{value:8.2f}{value / base:10.2f}{forward:10.2f}{peak:8.2f}")


if __name__ == "__main__":
    main()
