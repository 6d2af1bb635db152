"""Every code block of the documentation: Python is run, commands have flags that exist."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from functools import cache
from pathlib import Path

import pytest
import torch as th

from sb3_pmpo.online.arguments import DEFAULTS
from sb3_pmpo.tools.cli import COMMANDS, main

ROOT = Path(__file__).parent.parent
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
}
#: Language models have fewer steps of another kind, in tests/lm/test_guide.py.
ELSEWHERE = {"docs/language_models.md"}
#: What makes a block fast: a pattern, and what stands there instead.
SHORTER = {
    r"\.learn\([\d_]+": ".learn(50",  # a few decisions after the random ones
    r"gradient_steps=\d{3,}": "gradient_steps=10",
    r"maxfev=\d+": "maxfev=200",
    r"save_freq=[\d_]+": "save_freq=20",
    r"evaluate_policy\((.*)\)\)": r"evaluate_policy(\1, n_eval_episodes=1))",
    r"buffer_size=[\d_]+": "buffer_size=500",
}


def blocks(page: str, language: str) -> list[str]:
    """Return what stands between a page's fences."""
    return re.findall(rf"^```{language}\n(.*?)^```", PAGES[page], flags=re.DOTALL | re.MULTILINE)


WITH_PYTHON = [page for page in PAGES if blocks(page, "python") and page not in ELSEWHERE]


@pytest.mark.parametrize("page", WITH_PYTHON)
@pytest.mark.filterwarnings("ignore:.*beta=.*the policy may collapse", "ignore::FutureWarning")
def test_the_blocks_of_a_page_run_one_after_another(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(DEFAULTS, "batch_size", 8)
    monkeypatch.setitem(DEFAULTS, "learning_starts", 45)
    scope: dict[str, object] = {"__name__": "__main__"}
    for number, block in enumerate(blocks(page, "python")):
        for long, short in SHORTER.items():
            block = re.sub(long, short, block)
        code = compile(block, f"{page}, block {number}", "exec", dont_inherit=True)
        exec(code, scope)


@pytest.mark.parametrize("name", ["too_fast", "safe"])
def test_the_documented_labellers_reject_strong_actions(name: str) -> None:
    from sb3_pmpo import Candidates, from_masks

    code = PAGES["docs/choosing.md"].split(f"def {name}")[1].split("\n\n\n")[0].split("```")[0]
    scope: dict[str, object] = {"from_masks": from_masks}
    exec(f"def {name}{code}", scope)
    candidates = Candidates(
        scores=th.tensor([[3.0], [2.5], [1.0]]), actions=th.tensor([[[0.95]], [[0.1]], [[0.0]]])
    )
    accept, reject = scope[name](candidates)  # type: ignore[operator]  # defined by exec
    assert accept[:, 0].tolist() == [0.0, float(name == "too_fast"), 0.0]
    assert reject[:, 0].tolist() == [1.0, 0.0, 0.0]


@pytest.mark.parametrize("page", ["docs/extending.md"])
def test_an_extension_is_short(page: str) -> None:
    for block in blocks(page, "python"):
        lines = [line for line in block.splitlines() if line.strip() and "import" not in line]
        assert len(lines) <= 30, block


# ---------------------------------------------------------------------- commands


def commands() -> list[str]:
    """Return each call of sb3-pmpo in a block of commands."""
    lines = [line for page in PAGES for block in blocks(page, "sh") for line in block.splitlines()]
    return sorted({f"sb3-pmpo{line.split('sb3-pmpo', 1)[1]}" for line in lines if _calls(line)})


def _calls(line: str) -> bool:
    return bool(re.search(r"(^|\s|/)sb3-pmpo \w", line)) and not line.startswith("docker")


@cache
def help_of(command: str) -> str:
    """Return what ``sb3-pmpo COMMAND --help`` prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), pytest.raises(SystemExit):
        main([command, "--help"])
    return printed.getvalue()


@pytest.mark.parametrize("command", commands())
def test_a_command_and_its_flags_exist(command: str) -> None:
    _, name, *words = shlex.split(command, comments=True)
    assert name in COMMANDS
    known = set(re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", help_of(name)))
    for word in words:
        if re.match(r"--?[a-zA-Z]", word):
            assert word.partition("=")[0] in known, f"{command}: {word}"
