"""Offline PMPO when few completions are rejected and the others have no label: what beta does.

    python -m benchmarks.lm_rare --seeds 3

A model that speaks in four words at random; a rule that forbids one of them; 1024 completions, of
which 5% carry a rejection. The loss has a lower bound from ``beta = (1 - alpha) / 0.05 = 20`` on.
"""

from __future__ import annotations

import argparse
import copy
import random
import tempfile
from pathlib import Path
from typing import Any

import torch as th

from benchmarks.provenance import provenance
from benchmarks.records import write
from sb3_pmpo.lm.tiny import pretrain, tiny_model, tiny_tokenizer

RESULTS = Path(__file__).parent / "results" / "lm" / "rare_rejects.csv"
FIELDS = ("seed", "beta", "steps", "obeys", "distinct", "words", "empty", "kl_sequence", "commit",
          "machine", "versions")  # fmt: skip
WORDS, FORBIDDEN, N, SHARE = "abcd", "b", 1024, 0.05


def draw(model: Any, tokenizer: Any, seed: int) -> list[str]:
    """Draw completions of the four prompts in turn; the global generator stays as it was."""
    with th.random.fork_rng():
        th.manual_seed(seed)
        rows = tokenizer([*WORDS] * (N // len(WORDS)), return_tensors="pt")
        ids = model.eval().generate(**rows, max_new_tokens=8, do_sample=True, top_k=0)
    texts: list[str] = tokenizer.batch_decode(ids[:, 1:], skip_special_tokens=True)
    return texts


def describe(texts: list[str]) -> dict[str, float]:
    """Say how many obey the rule, and whether the model still speaks."""
    return {
        "obeys": round(sum(FORBIDDEN not in text.split() for text in texts) / len(texts), 3),
        "distinct": round(len(set(texts)) / len(texts), 3),
        "words": round(sum(len(text.split()) for text in texts) / len(texts), 2),
        "empty": round(sum(not text for text in texts) / len(texts), 3),
    }


def run(seed: int) -> list[dict[str, Any]]:
    """Train one base model with each beta; one row each, the base model's first."""
    from sb3_pmpo.lm import PMPOOfflineConfig, PMPOOfflineTrainer

    rng = random.Random(seed)
    tokenizer = tiny_tokenizer(WORDS)
    base = tiny_model(tokenizer, width=32, layers=1, seed=seed)
    speech = [" ".join(rng.choices(WORDS, k=rng.randint(1, 6))) for _ in range(500)]
    pretrain(base, tokenizer, speech, steps=120, seed=seed)
    texts = draw(base, tokenizer, seed)
    bad = [i for i, text in enumerate(texts) if FORBIDDEN in text.split()][: int(SHARE * N)]
    labels = {i: False for i in bad}
    data = [
        {"prompt": WORDS[i % len(WORDS)], "completion": text, "label": labels.get(i)}
        for i, text in enumerate(texts)
    ]
    rows: list[dict[str, Any]] = [{"beta": "", "steps": 0, **describe(texts), "kl_sequence": 0.0}]
    for beta in (2.0, 1.0 / SHARE):
        for steps in (100, 400):
            with tempfile.TemporaryDirectory() as folder:
                args = PMPOOfflineConfig(
                    folder, alpha=0.0, beta=beta, max_steps=steps, per_device_train_batch_size=128,
                    learning_rate=1e-3, seed=seed, report_to=[], use_cpu=True, save_strategy="no",
                    disable_tqdm=True, logging_steps=10,
                )  # fmt: skip
                trainer = PMPOOfflineTrainer(
                    copy.deepcopy(base), args, data, processing_class=tokenizer
                )
                trainer.train()
            log = [entry["kl/sequence"] for entry in trainer.state.log_history if "loss" in entry]
            found = describe(draw(trainer.model, tokenizer, 100 + seed))
            rows.append({"beta": beta, "steps": steps, **found, "kl_sequence": round(log[-1], 3)})
            print(seed, rows[-1], flush=True)
    return [{"seed": seed, **row} for row in rows]


def main() -> None:
    """Run the seeds and write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    th.set_num_threads(1)
    about = provenance()
    write(RESULTS, [row | about for seed in range(options.seeds) for row in run(seed)], FIELDS)


if __name__ == "__main__":
    main()
