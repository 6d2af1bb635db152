r"""Run language-model methods at equal samples: one CSV a run, resumable.

    python -m benchmarks.lm_runs tuning --first-seed 100 --seeds 1     # rates, on a seed apart
    python -m benchmarks.lm_runs rewards --seeds 5     # Section 3: arithmetic, a program judges
    python -m benchmarks.lm_runs figure4 --seeds 5     # reviews: a synthetic stand-in for Gemma 2B
    python -m benchmarks.lm_runs figure5 --seeds 3     # reviews: the KL's weight

A run that has its file is left out, so a suite that was stopped goes on. All the methods have one
loop: the same prompts, numbers of draws, and optimizer. Completions come from the reference, which
becomes the policy every 8 steps; GRPO, and DPO and KTO with the base as a fixed reference, draw
from the policy itself.

The reviews may be replaced by a model, prompts ({"prompt": text} a line) and a reward model of your
own, on a GPU if there is one; rows then go to --results:

    python -m benchmarks.lm_runs figure4 --model PATH --prompts FILE.jsonl --reward-model PATH \
        --results runs/lm --rate 1e-6 --max-new-tokens 256
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch as th

from benchmarks.lm_methods import RATES, Drawn, Method, methods
from benchmarks.lm_tasks import TASKS, Task, local
from benchmarks.provenance import provenance
from benchmarks.records import write
from sb3_pmpo.core.sequence import sequence_log_prob, sequence_terms

RESULTS = Path(__file__).parent / "results" / "lm"
FIELDS = ("suite", "task", "method", "rate", "seed", "step", "samples", "train_reward", "reward",
          "gold", "pass_1", "pass_8", "win_rate", "distinct", "kl_base", "seconds", "commit",
          "machine", "versions")  # fmt: skip
BETAS = [f"{name} beta={beta}" for name in ("AR", "A", "R") for beta in (0.0, 0.5, 1.0, 1.5, 2.0)]


#: Settings that are tried on a seed apart, before the suites: rates; DPO's and KTO's beta.
TUNED = [
    *(f"{name} rate={r:g}" for name in ("AR", "A", "R", "GRPO", "filtered") for r in RATES[1:]),
    *(f"{name} beta={b} rate={r:g}" for name in ("DPO", "KTO") for b in (0.1, 1.0)
      for r in RATES[:2]),
    "DPO, refreshed rate=0.0003", "KTO, refreshed rate=0.0003",
]  # fmt: skip


class Suite(NamedTuple):
    """What is run; ``rate`` is the learning rate of all whose names have none, or None."""

    task: str
    methods: list[str]
    steps: int
    n_prompts: int
    n_samples: int
    eval_every: int
    rate: float | None = None


SUITES = {
    "rewards": Suite(
        "arithmetic", ["AR", "A", "R", "GRPO", "KTO", "DPO", "filtered"], 120, 16, 8, 40
    ),
    "figure4": Suite(
        "reviews",
        ["AR", "A", "R", "best/worst", "DPO", "DPO beta=0.1 rate=0.0003"],
        80,
        16,
        4,
        40,
        1e-3,
    ),
    "figure5": Suite("reviews", BETAS, 60, 16, 4, 60, 1e-3),
    "tuning": Suite("arithmetic", TUNED, 120, 16, 8, 120),
}
REFERENCE_STEPS, ROW_STEPS = 8, 10


class Completions(NamedTuple):
    """Drawn completions: tokens ``[N, P + C]``, which of them count, the texts."""

    ids: th.Tensor
    attention: th.Tensor
    counts: th.Tensor
    prompts: list[str]
    texts: list[str]


@th.no_grad()
def draw(task: Task, model: Any, prompts: list[str]) -> Completions:
    """Draw a completion of each prompt."""
    rows = task.tokenizer(prompts, padding=True, return_tensors="pt").to(model.device)
    ids = model.generate(
        **rows, do_sample=True, top_k=0, max_new_tokens=task.max_new_tokens, use_cache=True
    )
    start = rows["input_ids"].shape[1]
    answers = ids[:, start:]
    ended = (answers == task.tokenizer.eos_token_id).cumsum(1)
    counts = th.zeros_like(ids, dtype=th.bool)
    counts[:, start:] = (ended == 0) | ((ended == 1) & (answers == task.tokenizer.eos_token_id))
    attention = counts.long()
    attention[:, :start] = rows["attention_mask"]
    texts = task.tokenizer.batch_decode(
        answers.where(counts[:, start:], task.tokenizer.pad_token_id), skip_special_tokens=True
    )
    return Completions(ids, attention, counts, prompts, texts)


def logits_of(model: Any, drawn: Completions) -> th.Tensor:
    """Compute the logits at every position, ``[N, P + C, V]``."""
    positions = (drawn.attention.cumsum(1) - 1).clamp(min=0)
    return model(input_ids=drawn.ids, attention_mask=drawn.attention, position_ids=positions).logits


def terms_of(model: Any, reference: Any, drawn: Completions, rewards: th.Tensor, n: int) -> Drawn:
    """Compute what the losses need; ``[S, B]`` each."""
    tokens = drawn.ids.roll(-1, 1)
    counts = drawn.counts.roll(-1, 1)  # the first position never counts, so nothing wraps round
    with th.no_grad():
        reference_logits = logits_of(reference, drawn)
        of_reference = sequence_log_prob(reference_logits, tokens, counts)
    terms = sequence_terms(logits_of(model, drawn), reference_logits, tokens, counts)
    parts = (terms.log_prob, of_reference, terms.kl, counts.sum(1), rewards.to(counts.device))
    return Drawn(*(part.view(-1, n).T for part in parts))


def evaluate(task: Task, model: Any, base: Any, seed: int) -> dict[str, float]:
    """Judge completions of held-out prompts: eight each, or one each of 504."""
    with th.random.fork_rng():
        th.manual_seed(777 + seed)
        n = 8 if task.binary else 1
        prompts = [prompt for prompt in task.held_out for _ in range(n)]
        texts, kls = [], []
        for start in range(0, len(prompts), task.eval_batch):
            drawn = draw(task, model, prompts[start : start + task.eval_batch])
            texts += drawn.texts
            kls.append(kl_between(model, base, drawn))
        gold = th.tensor(task.gold(prompts, texts))
        found = {
            "reward": sum(task.judge(prompts, texts)) / len(prompts),
            "gold": float(gold.mean()),
            "distinct": len(set(zip(prompts, texts, strict=True))) / len(prompts),
            "kl_base": float(th.cat(kls).mean()),
        }
        if task.binary:
            found["pass_1"] = float(gold.mean())
            found["pass_8"] = float(gold.view(-1, n).amax(1).mean())
        else:
            rivals = []
            for start in range(0, len(prompts), task.eval_batch):
                rivals += draw(task, base, prompts[start : start + task.eval_batch]).texts
            rival = th.tensor(task.gold(prompts, rivals))
            wins = (gold > rival).float() + 0.5 * (gold == rival).float()
            found["win_rate"] = float(wins.mean())
    return found


@th.no_grad()
def kl_between(model: Any, base: Any, drawn: Completions) -> th.Tensor:
    """Compute ``KL(policy || base)`` of the policy's own completions in closed form, ``[N]``."""
    tokens, counts = drawn.ids.roll(-1, 1), drawn.counts.roll(-1, 1)
    return sequence_terms(logits_of(base, drawn), logits_of(model, drawn), tokens, counts).kl


def train(task: Task, method: Method, suite: Suite, seed: int) -> list[dict[str, Any]]:
    """Train and evaluate; return the rows."""
    th.manual_seed(seed)
    base, model = copy.deepcopy(task.model).eval(), task.model.eval()
    reference = copy.deepcopy(model)
    optimizer = th.optim.Adam(model.parameters(), method.rate)
    rows: list[dict[str, Any]] = []
    recent: list[float] = []
    started = time.perf_counter()
    pool: list[tuple[Completions, th.Tensor]] = []
    for step in range(suite.steps + 1):
        if step % min(ROW_STEPS, suite.eval_every) == 0:
            row: dict[str, Any] = {
                "step": step,
                "samples": step * suite.n_prompts * suite.n_samples,
            }
            row["seconds"] = round(time.perf_counter() - started, 2)
            row["train_reward"] = sum(recent) / len(recent) if recent else ""
            recent = []
            judged = step % suite.eval_every == 0
            rows.append(row | (evaluate(task, model, base, seed) if judged else {}))
        if step == suite.steps:
            break
        if step % REFERENCE_STEPS == 0 and not method.fixed:
            reference.load_state_dict(model.state_dict())
        if not pool:
            for _ in range(REFERENCE_STEPS if method.pooled else 1):
                at = th.randperm(len(task.prompts))[: suite.n_prompts].tolist()
                prompts = [task.prompts[i] for i in at for _ in range(suite.n_samples)]
                drawn = draw(task, model if method.on_policy else reference, prompts)
                pool.append((drawn, th.tensor(task.judge(prompts, drawn.texts))))
        drawn, rewards = pool.pop()
        recent.append(float(rewards.mean()))
        loss = method.loss(terms_of(model, reference, drawn, rewards, suite.n_samples))
        optimizer.zero_grad()
        loss.backward()
        th.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return rows


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("suite", choices=SUITES)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--methods", nargs="+", help="default: all of the suite")
    parser.add_argument("--minutes", type=float, help="start no run after that many")
    parser.add_argument("--results", type=Path, default=RESULTS)
    for name in ("steps", "n-prompts", "eval-every"):
        parser.add_argument(f"--{name}", type=int, help="default: the suite's")
    parser.add_argument("--rate", type=float, help="learning rate; default: the method's")
    yours = parser.add_argument_group("your own model, prompts and reward model")
    yours.add_argument("--model", type=Path, help="a folder, as save_pretrained writes it")
    yours.add_argument("--prompts", type=Path, help="JSON lines; the last fifth is held out")
    yours.add_argument("--reward-model", type=Path, help="with one output")
    yours.add_argument("--max-new-tokens", type=int, default=64)
    options = parser.parse_args(arguments)
    given = [options.model, options.prompts, options.reward_model]
    if any(given) and not all(given):
        parser.error("--model, --prompts and --reward-model go together")
    if any(given) and options.results == RESULTS:
        parser.error("--model needs --results FOLDER, to keep its rows apart from the suites'")
    return options


def choose(options: argparse.Namespace) -> tuple[Suite, Callable[[int], Task]]:
    """Return what is to be run, and what makes its task of a seed."""
    suite = SUITES[options.suite]
    changed = {n: getattr(options, n) for n in ("steps", "n_prompts", "eval_every")}
    suite = suite._replace(**{name: value for name, value in changed.items() if value})
    if options.model is None:
        return suite, TASKS[suite.task]
    paths = (options.model, options.prompts, options.reward_model)
    return suite, partial(local, *paths, max_new_tokens=options.max_new_tokens)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what has no file yet."""
    options = parse(arguments)
    th.set_num_threads(1)
    (suite, make_task), began = choose(options), time.perf_counter()
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        fresh: Task | None = None
        for name in options.methods or suite.methods:
            file = name.replace("/", "_").replace(" ", "_")
            path = options.results / options.suite / f"{file}_{seed}.csv"
            if path.exists():
                continue
            if options.minutes and time.perf_counter() - began > 60 * options.minutes:
                return
            fresh = fresh or make_task(seed)
            task = fresh._replace(model=copy.deepcopy(fresh.model))
            method = methods(task.binary, suite.n_samples)[name]
            named = method.rate if " rate=" in name else None
            method = method._replace(rate=options.rate or named or suite.rate or method.rate)
            common = {"suite": options.suite, "task": task.name, "method": name, "seed": seed}
            about = common | {"rate": method.rate} | provenance()
            rows = train(task, method, suite, seed)
            write(path, [about | row for row in rows], FIELDS)
            last = rows[-1]
            print(f"{options.suite} {name} seed {seed}: reward {last['reward']:.3f}, gold "
                  f"{last['gold']:.3f}, {last['seconds']:.0f} s", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
