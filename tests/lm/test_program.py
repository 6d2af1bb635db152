"""The command: from files to a trained model, and on from where it stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl", reason="needs the extra: pip install 'sb3_pmpo[lm]'")

from conftest import WORDS

from sb3_pmpo.lm.program import main
from sb3_pmpo.lm.tiny import save_tiny

pytestmark = pytest.mark.filterwarnings("ignore")

SETTINGS = ["--cpu", "--batch-size", "16", "--max-completion", "6", "--learning-rate", "1e-3"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Any, tokenizer: Any) -> Path:
    save_tiny(model, tokenizer, tmp_path / "model")
    rows = [{"prompt": word} for word in WORDS * 4]
    (tmp_path / "prompts.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    labels = [{"prompt": w, "completion": "a a", "label": w in "ab"} for w in WORDS * 4]
    (tmp_path / "labels.jsonl").write_text("\n".join(json.dumps(row) for row in labels))
    (tmp_path / "taste.py").write_text(
        "def likes_a(completions, **_):\n    return [float(c.count('a')) for c in completions]\n"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_online_and_on(folder, capsys):
    arguments = ["--model", "model", "--prompts", "prompts.jsonl", "--reward", "taste:likes_a",
                 "--reference-steps", "2", "--eval-steps", "2", "--save-steps", "2"]  # fmt: skip
    assert main([*arguments, *SETTINGS, "--steps", "2"]) == 0
    assert "step 2" in capsys.readouterr().out
    assert main([*arguments, *SETTINGS, "--steps", "4", "--accept-from", "1"]) == 0
    out = capsys.readouterr().out
    assert "going on from runs/lm/checkpoint-2" in out
    assert "step 4" in out
    assert (folder / "runs/lm/final/model.safetensors").exists()


def test_labels_with_adapters(folder, capsys):
    arguments = ["--model", "model", "--labels", "labels.jsonl", "--lora", "2", "--output", "out"]
    assert main([*arguments, *SETTINGS, "--steps", "2", "--eval-steps", "1"]) == 0
    assert capsys.readouterr().out.count("->") == 16
    assert (folder / "out/final/adapter_model.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompts", "prompts.jsonl"], "--prompts needs --reward"),
        (["--prompts", "prompts.jsonl", "--reward", "taste:none"], "module:function, got"),
        (["--labels", "taste.py"], "line 1 is no JSON"),
        (["--labels", "missing.jsonl"], "there is no such file"),
        (["--labels", "labels.jsonl", "--alpha", "0", "--beta", "1"], "rejected completions only"),
    ],
)
def test_what_cannot_work_is_said(folder, capsys, arguments, message):
    with pytest.raises(SystemExit, match="2"):
        main(["--model", "model", *arguments, *SETTINGS])
    assert message in capsys.readouterr().err


def test_a_checkpoint_that_was_not_written_to_its_end_is_left_out(folder, capsys, monkeypatch):
    """Killed while it saves: the next run goes on from the checkpoint before."""
    arguments = ["--model", "model", "--labels", "labels.jsonl", "--save-steps", "1",
                 "--reference-steps", "1", *SETTINGS]  # fmt: skip
    assert main([*arguments, "--steps", "1"]) == 0
    with monkeypatch.context() as patch:
        patch.setattr("sb3_pmpo.lm.offline.save_reference", interrupt)
        with pytest.raises(KeyboardInterrupt):
            main([*arguments, "--steps", "2"])
    (folder / "runs/lm/checkpoint-2").mkdir(exist_ok=True)
    capsys.readouterr()
    assert main([*arguments, "--steps", "3"]) == 0
    out = capsys.readouterr().out
    assert "checkpoint-2 was not written to its end" in out
    assert "going on from runs/lm/checkpoint-1" in out


def interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("option", [["--reward", "taste:likes_a"], ["--accept-from", "1"]])
def test_what_labels_have_no_use_for_is_refused(folder, capsys, option):
    with pytest.raises(SystemExit, match="2"):
        main(["--model", "model", "--labels", "labels.jsonl", *option])
    assert f"{option[0]} judges what is drawn" in capsys.readouterr().err
