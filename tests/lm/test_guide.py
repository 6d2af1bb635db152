"""The guide's code runs from top to bottom, with fewer steps."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("trl", reason="needs the extra: pip install 'sb3_pmpo[lm]'")

from sb3_pmpo.lm.program import parse

GUIDE = (Path(__file__).parents[2] / "docs" / "language_models.md").read_text()


@pytest.mark.filterwarnings("ignore")
def test_the_guide_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = "\n".join(re.findall(r"```python\n(.*?)```", GUIDE, flags=re.DOTALL))
    code = code.replace("max_steps=40", "max_steps=2").replace("steps=150", "steps=20")
    code = code.replace("report_to=[]", "report_to=[], disable_tqdm=True")
    exec(compile(code.replace("logging_steps=10", "logging_steps=1"), "guide", "exec"), {})
    assert "alpha 0.0 beta 2.0" in capsys.readouterr().out


def test_the_guides_commands_are_known():
    commands = re.findall(r"^sb3-pmpo lm (.*)$", GUIDE, flags=re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        parse(command.split())
