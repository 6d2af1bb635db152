"""``sb3-pmpo lm``: train a language model from a reward function, or from labelled completions."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from sb3_pmpo.command_line import Parser, reason
from sb3_pmpo.core.labels import threshold


def make_parser() -> argparse.ArgumentParser:
    """Make the parser: what is learned from, by which objective, how it is trained."""
    parser = Parser(prog="sb3-pmpo lm", description=__doc__.partition(": ")[2].capitalize())
    parser.add_argument("--model", required=True, help="folder (or hub name) of a causal model")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--prompts", type=Path, help='JSON lines {"prompt": ...}, with --reward')
    source.add_argument(
        "--labels",
        type=Path,
        help='JSON lines {"prompt", "completion", "label"} or {"prompt", "chosen", "rejected"}',
    )
    parser.add_argument("--reward", help="module:function, called as TRL calls reward functions")
    parser.add_argument("--output", type=Path, default=Path("runs/lm"),
                        help="goes on from what is there (default: %(default)s)")  # fmt: skip
    parser.add_argument(
        "--steps", type=int, default=500, help="optimizer steps in all (default: %(default)s)"
    )
    parser.add_argument("--alpha", type=float, help="default: 0.5, or what the labels determine")
    parser.add_argument("--beta", type=float, help="default: 2 * (1 - alpha)")
    parser.add_argument("--samples", type=int, default=4,
                        help="completions of a prompt (default: %(default)s)")  # fmt: skip
    parser.add_argument("--accept-from", type=float, metavar="REWARD",
                        help="accept from this reward on; default: the better half")  # fmt: skip
    parser.add_argument("--reference-steps", type=int, help="default: 16; with --labels 0")
    _add_training(parser)
    return parser


def _add_training(parser: argparse.ArgumentParser) -> None:
    """Add the options that other trainers have too."""
    parser.add_argument("--batch-size", type=int, default=16,
                        help="completions of a minibatch (default: %(default)s)")  # fmt: skip
    parser.add_argument("--accumulation", type=int, default=1,
                        help="minibatches of a step (default: %(default)s)")  # fmt: skip
    parser.add_argument("--learning-rate", type=float, default=1e-6, help="(default: %(default)s)")
    parser.add_argument(
        "--max-completion", type=int, default=256, help="tokens (default: %(default)s)"
    )
    parser.add_argument("--lora", type=int, metavar="RANK", help="train adapters of this rank")
    parser.add_argument("--eval-prompts", type=Path, help="JSON lines; default: the first eight")
    parser.add_argument("--eval-steps", type=int, default=50,
                        help="show completions this often (default: %(default)s)")  # fmt: skip
    parser.add_argument("--save-steps", type=int, default=50,
                        help="write a checkpoint this often (default: %(default)s)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument("--cpu", action="store_true", help="train on the CPU, in float32")


def parse(arguments: Sequence[str] | None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """Read the command line."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    if options.prompts and not options.reward:
        parser.error("--prompts needs --reward module:function, which judges the completions")
    for name in ("reward", "accept_from"):
        if options.labels and getattr(options, name) is not None:
            option = "--" + name.replace("_", "-")
            parser.error(f"{option} judges what is drawn for --prompts: leave it out with --labels")
    if options.reference_steps is None:
        options.reference_steps = 0 if options.labels else 16
    return parser, options


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read JSON lines.

    :raises ValueError: naming the line that is none.
    """
    rows = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number} is no JSON: {error}") from error
        if not isinstance(row, dict) or "prompt" not in row:
            raise ValueError(f'{path}, line {number} has no "prompt"')
        rows.append(row)
    if not rows:
        raise ValueError(f"{path} has no rows")
    return rows


def load_function(name: str) -> Any:
    """Import ``module:function``, also from the current folder.

    :raises ValueError: if there is no such thing.
    """
    module, _, function = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return getattr(import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"--reward must be module:function, got {name!r}: {error}") from error


def settings(options: argparse.Namespace, **more: Any) -> dict[str, Any]:
    """Collect what both trainers' settings share."""
    alpha, beta = options.alpha, options.beta
    if alpha is not None and beta is None:
        beta = 2.0 * (1.0 - alpha)
    given = {name: value for name, value in (("alpha", alpha), ("beta", beta)) if value is not None}
    return dict(
        output_dir=str(options.output),
        max_steps=options.steps,
        reference_steps=options.reference_steps,
        per_device_train_batch_size=options.batch_size,
        gradient_accumulation_steps=options.accumulation,
        learning_rate=options.learning_rate,
        save_steps=options.save_steps,
        save_total_limit=2,
        logging_steps=max(1, min(10, options.eval_steps)),
        seed=options.seed,
        use_cpu=options.cpu,
        report_to=[],
        **given,
        **more,
    )


def make_trainer(options: argparse.Namespace) -> Any:
    """Make the trainer that the command line asks for."""
    from datasets import Dataset
    from transformers import AutoTokenizer

    from sb3_pmpo.lm import PMPOConfig, PMPOOfflineConfig, PMPOOfflineTrainer, PMPOTrainer
    from sb3_pmpo.lm.samples import ShowSamples

    rows = read_rows(options.prompts or options.labels)
    shown = read_rows(options.eval_prompts) if options.eval_prompts else rows[:8]
    tokenizer = AutoTokenizer.from_pretrained(options.model, padding_side="left")
    show = ShowSamples(
        tokenizer, [row["prompt"] for row in shown], options.eval_steps, options.max_completion
    )
    common: dict[str, Any] = {"processing_class": tokenizer, "callbacks": [show]}
    if options.lora:
        from peft import LoraConfig

        common["peft_config"] = LoraConfig(
            r=options.lora, target_modules="all-linear", task_type="CAUSAL_LM"
        )
    if options.labels:
        return PMPOOfflineTrainer(
            options.model, PMPOOfflineConfig(**settings(options)), rows, **common
        )
    online = settings(
        options,
        num_generations=options.samples,
        max_completion_length=options.max_completion,
        bf16=not options.cpu,
    )
    labeller = None if options.accept_from is None else threshold(options.accept_from)
    return PMPOTrainer(
        options.model,
        load_function(options.reward),
        PMPOConfig(**online),
        train_dataset=Dataset.from_list(rows),
        labeller=labeller,
        **common,
    )


def last_whole_checkpoint(folder: Path) -> str | None:
    """Return the newest checkpoint that was written to its end; None if there is none.

    A run that is killed while it saves leaves a folder without the trainer's state, which is
    written last.
    """
    steps = {}
    for path in folder.glob("checkpoint-*"):
        try:
            steps[int(json.loads((path / "trainer_state.json").read_text())["global_step"])] = path
        except (OSError, ValueError, KeyError, TypeError):
            print(f"{path} was not written to its end, and is left out")
    return str(steps[max(steps)]) if steps else None


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, going on from the last checkpoint of the folder; return the exit status."""
    parser, options = parse(arguments)
    try:
        trainer = make_trainer(options)
    except ModuleNotFoundError as error:
        parser.error(f"lm needs {error.name!r}: pip install 'sb3_pmpo[lm]'")
    except (ImportError, OSError, ValueError) as error:
        parser.error(reason(error))
    options.output.mkdir(parents=True, exist_ok=True)
    checkpoint = last_whole_checkpoint(options.output)
    if checkpoint is not None:
        print(f"going on from {checkpoint}")
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model(str(options.output / "final"))
    print(f"saved to {options.output / 'final'}")
    return 0
