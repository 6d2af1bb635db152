"""Tasks for small language models: arithmetic with a program as the judge, and film reviews.

Both are made here, from nothing. The reviews are a synthetic stand-in for Sec. 5.4: a grammar with
sentiment, a Bradley-Terry reward model that was fitted to noisy ranked pairs as the proxy, and the
true rule as the gold judge.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch as th

from sb3_pmpo.lm.tiny import pretrain, tiny_model, tiny_tokenizer

Judge = Callable[[Sequence[str], Sequence[str]], list[float]]


class Task(NamedTuple):
    """What is trained on, and who judges.

    :param prompts: to train on; of ``held_out`` nothing is trained.
    :param judge: prompts and completions to rewards, the proxy.
    :param gold: the same, the truth.
    :param binary: whether the judge only says yes (1) and no (0).
    :param eval_batch: completions that are drawn together.
    """

    name: str
    model: Any
    tokenizer: Any
    prompts: list[str]
    held_out: list[str]
    judge: Judge
    gold: Judge
    binary: bool
    max_new_tokens: int
    eval_batch: int = 1024


def arithmetic(seed: int) -> Task:
    """Make sums of two numbers up to 19, digit by digit, which the base knows with errors."""
    rng = random.Random(1000 + seed)
    pairs = [(a, b) for a in range(20) for b in range(20)]
    prompts = [f"{' '.join(str(a))} + {' '.join(str(b))} =" for a, b in pairs]
    texts = []
    for _ in range(12):  # a right answer every third time, else one that is near
        for (a, b), prompt in zip(pairs, prompts, strict=True):
            error = 0 if rng.random() < 0.35 else rng.choice([-10, -3, -2, -1, 1, 2, 3, 10])
            texts.append(f"{prompt} {' '.join(str(max(0, a + b + error)))}")
    tokenizer = tiny_tokenizer("0123456789+=")
    model = tiny_model(tokenizer, width=48, seed=seed)
    pretrain(model, tokenizer, texts, steps=500, batch_size=64, seed=seed)
    rng.shuffle(prompts)

    def right(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
        found = []
        for prompt, completion in zip(prompts, completions, strict=True):
            a, b = ("".join(part.split()) for part in prompt.rstrip(" =").split("+"))
            found.append(float("".join(completion.split()) == str(int(a) + int(b))))
        return found

    return Task("arithmetic", model, tokenizer, prompts[:300], prompts[300:], right, right, True, 4)


NOUNS = ["film", "plot", "cast", "music", "ending", "script"]
GOOD = ["good", "great", "fine", "lovely"]
BAD = ["bad", "dull", "poor", "awful"]
OTHER = ["the", "is", "not", "very", "and"]


def review(rng: random.Random, start: str) -> str:
    """Draw ``is [not] [very] <adjective> [and the <noun> is ...]`` after ``the <noun>``."""
    words, parts = [start], 1 + (rng.random() < 0.4)
    for part in range(parts):
        words += ["and", "the", rng.choice(NOUNS)] if part else []
        words += ["is"] + ["not"] * (rng.random() < 0.3) + ["very"] * (rng.random() < 0.3)
        words.append(rng.choice(GOOD + BAD))
    return " ".join(words)


ONE = f"is( not)?( very)? ({'|'.join(GOOD + BAD)})"
SENTENCE = re.compile(f"{ONE}( and the ({'|'.join(NOUNS)}) {ONE})?")


def sentiment(text: str) -> float:
    """Judge by the rule: +1 or -1 for each clause, the other way round after ``not``.

    What is no sentence of the grammar, which has two clauses at most, has -2.
    """
    words = text.split()
    if not SENTENCE.fullmatch(" ".join(words)):
        return -2.0
    total = 0.0
    for i, word in enumerate(words):
        sign = (word in GOOD) - (word in BAD)
        total += -sign if "not" in words[max(0, i - 2) : i] else sign
    return total


def reviews(seed: int) -> Task:
    """Make film reviews that are to become favourable, judged by a reward model of words."""
    rng = random.Random(2000 + seed)
    starts = [f"the {noun}" for noun in NOUNS]
    texts = [review(rng, rng.choice(starts)) for _ in range(4000)]
    tokenizer = tiny_tokenizer([*NOUNS, *GOOD, *BAD, *OTHER])
    model = tiny_model(tokenizer, width=48, seed=seed)
    pretrain(model, tokenizer, texts, steps=400, batch_size=64, seed=seed)
    proxy = fit_reward_model(texts, tokenizer, rng, seed)

    def gold(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
        return [sentiment(completion) for completion in completions]

    return Task("reviews", model, tokenizer, starts * 20, starts * 84, proxy, gold, False, 16)


def fit_reward_model(texts: list[str], tokenizer: Any, rng: random.Random, seed: int) -> Judge:
    """Fit ``P(a over b) = sigmoid(r(a) - r(b))`` to pairs that the gold judge ranked with noise.

    The reward is a sum over pairs of neighbouring words, which knows "not good" but neither the
    grammar nor that "very very" says nothing new.
    """
    size = len(tokenizer)
    weights = th.zeros(size * size, requires_grad=True)
    bias = th.zeros(size, requires_grad=True)

    def score(rows: Sequence[str]) -> th.Tensor:
        totals = []
        for row in rows:
            ids = th.tensor(tokenizer(row)["input_ids"] or [tokenizer.eos_token_id])
            totals.append(bias[ids].sum() + weights[ids[:-1] * size + ids[1:]].sum())
        return th.stack(totals)

    optimizer = th.optim.Adam([weights, bias], 0.05)
    for _ in range(60):
        pairs = [rng.sample(texts, 2) for _ in range(32)]
        margin = score([a for a, _ in pairs]) - score([b for _, b in pairs])
        better = [sentiment(_tail(a)) - sentiment(_tail(b)) + rng.gauss(0, 1) > 0 for a, b in pairs]
        sign = 2.0 * th.tensor(better) - 1.0
        penalty = 1e-3 * (weights.square().sum() + bias.square().sum())
        loss = th.nn.functional.softplus(-sign * margin).mean() + penalty
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def proxy(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
        with th.no_grad():
            return [float(r) for r in score(list(completions))]

    return proxy


def local(
    model: Path, prompts: Path, reward_model: Path, seed: int, *, max_new_tokens: int
) -> Task:
    """Take a model, prompts and a reward model from this disk.

    The last fifth of the prompts, 500 at most, is held out. There is no gold judge: what stands
    under that name is the reward model's reward too.

    :param model: a folder that ``from_pretrained`` reads, with its tokenizer.
    :param prompts: JSON lines ``{"prompt": text}``.
    :param reward_model: a folder of a sequence classifier with one output, with its tokenizer.
    :param seed: has no influence on the task.
    """
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoTokenizer,
    )

    device = "cuda" if th.cuda.is_available() else "cpu"
    policy = AutoModelForCausalLM.from_pretrained(model).to(device)
    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    scorer = AutoModelForSequenceClassification.from_pretrained(reward_model).to(device).eval()
    words = AutoTokenizer.from_pretrained(reward_model)
    words.pad_token = words.pad_token or words.eos_token
    scorer.config.pad_token_id = words.pad_token_id
    lines = prompts.read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["prompt"] for line in lines if line.strip()]
    held_out = min(500, len(texts) // 5)
    if not held_out:
        raise ValueError(f"{prompts} must have 5 prompts or more, got {len(texts)}")

    @th.no_grad()
    def judge(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
        found: list[float] = []
        both = [f"{p} {c}" for p, c in zip(prompts, completions, strict=True)]
        for start in range(0, len(both), 32):
            rows = words(both[start : start + 32], padding=True, return_tensors="pt").to(device)
            found += scorer(**rows).logits[:, 0].tolist()
        return found

    split = (texts[:-held_out], texts[-held_out:])
    return Task(model.name, policy, tokenizer, *split, judge, judge, False, max_new_tokens, 32)


def _tail(text: str) -> str:
    """Leave out the prompt, two words."""
    return " ".join(text.split()[2:])


TASKS = {"arithmetic": arithmetic, "reviews": reviews}
