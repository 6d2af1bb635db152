"""A tiny model that speaks in four words, and a judge."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import copy
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch as th

WORDS = "abcd"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes more than ten seconds")


def judge(completions: list[Any], **_: Any) -> list[float]:
    """Say yes to two a's or more."""
    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    return [float(text.split().count("a") >= 2) for text in texts]


def parameters(model: Any) -> th.Tensor:
    return th.cat([p.detach().flatten() for p in model.parameters()])


def prepared(trainer: Any) -> Any:
    """Bring a trainer to where ``train`` has it when it asks for a loss."""
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    return trainer


def history(trainer: Any, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    from sb3_pmpo.lm.tiny import tiny_tokenizer

    return tiny_tokenizer(WORDS, chat=True)


@pytest.fixture(scope="session")
def pretrained(tokenizer: Any) -> Any:
    from sb3_pmpo.lm.tiny import pretrain, tiny_model

    rng = random.Random(0)
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(1, 6))) for _ in range(500)]
    model = tiny_model(tokenizer, width=32, layers=1)
    pretrain(model, tokenizer, texts, steps=120)
    return model


@pytest.fixture
def model(pretrained: Any) -> Any:
    return copy.deepcopy(pretrained)


@pytest.fixture
def online(tmp_path: Path, model: Any, tokenizer: Any) -> Callable[..., Any]:
    """Make an online trainer with settings for a CPU."""
    from datasets import Dataset

    from sb3_pmpo.core.labels import threshold
    from sb3_pmpo.lm import PMPOConfig, PMPOTrainer

    def make(**given: Any) -> Any:
        trainer = {"model": model, "reward_funcs": judge, "processing_class": tokenizer}
        trainer["train_dataset"] = Dataset.from_dict({"prompt": [*WORDS] * 16})
        trainer["labeller"] = threshold(0.5)
        trainer |= {name: given.pop(name) for name in [*given] if name in (*trainer, *TRAINER)}
        settings = dict(
            output_dir=str(tmp_path),
            per_device_train_batch_size=16,
            num_generations=8,
            max_completion_length=8,
            max_steps=4,
            learning_rate=3e-3,
            lr_scheduler_type="constant",
            reference_steps=2,
            report_to=[],
            bf16=False,
            use_cpu=True,
            gradient_checkpointing=False,
            logging_steps=1,
            save_strategy="no",
            disable_tqdm=True,
        )
        return PMPOTrainer(args=PMPOConfig(**settings | given), **trainer)

    return make


#: Arguments that are the trainer's, not its settings'.
TRAINER = ("peft_config", "callbacks", "eval_dataset", "reward_processing_classes")


@pytest.fixture
def offline(tmp_path: Path, model: Any, tokenizer: Any) -> Callable[..., Any]:
    """Make an offline trainer with settings for a CPU."""
    from sb3_pmpo.lm import PMPOOfflineConfig, PMPOOfflineTrainer

    def make(rows: list[dict[str, Any]], **given: Any) -> Any:
        trainer = {"model": model, "processing_class": tokenizer}
        trainer |= {name: given.pop(name) for name in [*given] if name in (*trainer, *TRAINER)}
        settings = dict(
            output_dir=str(tmp_path),
            per_device_train_batch_size=16,
            max_steps=4,
            learning_rate=1e-3,
            report_to=[],
            use_cpu=True,
            logging_steps=1,
            save_strategy="no",
            disable_tqdm=True,
        )
        return PMPOOfflineTrainer(
            args=PMPOOfflineConfig(**settings | given), train_dataset=rows, **trainer
        )

    return make
