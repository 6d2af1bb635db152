"""The benchmark's script takes a model, prompts and a reward model from this disk."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl", reason="needs the extra: pip install 'sb3_pmpo[lm]'")

from conftest import WORDS

from benchmarks.lm_runs import main
from benchmarks.lm_tasks import sentiment
from sb3_pmpo.lm.tiny import save_tiny


@pytest.fixture
def paths(tmp_path: Path, model: Any, tokenizer: Any) -> list[str]:
    from transformers import LlamaConfig, LlamaForSequenceClassification

    save_tiny(model, tokenizer, tmp_path / "model")
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_labels=1, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    save_tiny(LlamaForSequenceClassification(config), tokenizer, tmp_path / "judge")
    rows = [{"prompt": f"{a} {b}"} for a in WORDS for b in WORDS]
    (tmp_path / "prompts.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    named = [("--model", "model"), ("--prompts", "prompts.jsonl"), ("--reward-model", "judge")]
    return [part for name, path in named for part in (name, str(tmp_path / path))]


def test_figure_4_of_a_model_on_this_disk(paths: list[str], tmp_path: Path) -> None:
    arguments = ["figure4", *paths, "--results", str(tmp_path / "rows"), "--seeds", "1"]
    arguments += ["--methods", "AR", "DPO", "--steps", "2", "--eval-every", "1"]
    main([*arguments, "--n-prompts", "4", "--max-new-tokens", "5", "--rate", "0.01"])
    for method in ("AR", "DPO"):
        with (tmp_path / "rows" / "figure4" / f"{method}_0.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert [row["step"] for row in rows] == ["0", "1", "2"]
        assert {row["task"] for row in rows} == {"model"}
        assert float(rows[0]["kl_base"]) == pytest.approx(0.0, abs=1e-6)
        assert float(rows[-1]["kl_base"]) > 0.0
        assert all(0.0 <= float(row["win_rate"]) <= 1.0 for row in rows)


@pytest.mark.parametrize(
    ("drop", "message"),
    [(2, "go together"), (0, "needs --results FOLDER")],
)
def test_what_is_missing_is_said(
    paths: list[str], drop: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["figure4", *paths[drop:]])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("review", "worth"),
    [
        ("is good", 1.0),
        ("is not very good", -1.0),
        ("is not bad and the plot is very lovely", 2.0),
        ("is good great lovely", -2.0),  # no sentence
        ("is good and the plot is good and the cast is good", -2.0),  # three clauses
        ("", -2.0),
    ],
)
def test_the_gold_judge_knows_the_grammar(review: str, worth: float) -> None:
    assert sentiment(review) == worth
