"""The help of each command: at once, and what the command's own parser says."""

from __future__ import annotations

import subprocess
import sys

import pytest

from sb3_pmpo.tools.cli import COMMANDS, main, stored_help
from sb3_pmpo.tools.helps import live_help

PROGRAM = """
import sys
from sb3_pmpo.tools.cli import main
for command in {commands}:
    try:
        main([command, "--help"])
    except SystemExit as stop:
        assert stop.code == 0
heavy = {{"torch", "stable_baselines3", "rl_zoo3", "gymnasium", "numpy"}} & sys.modules.keys()
assert not heavy, heavy
"""


def test_help_imports_nothing_heavy() -> None:
    program = PROGRAM.format(commands=list(COMMANDS))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("usage: sb3-pmpo") == len(COMMANDS) + 1  # tune shows the Zoo's as well


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="argparse writes options in another way")
@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_that_is_stored_is_that_of_the_parser(command: str) -> None:
    assert stored_help(command) == live_help(command), "run python -m sb3_pmpo.tools.helps"


def test_help_shows_the_defaults_that_are_ours_and_an_example(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for command, shown in [
        ("train", ("RL Algorithm (default: pmpo)", "--from-pretrained NAME", "--env ENV ")),
        ("enjoy", ("(default: logs)", "--pretrained NAME")),
        ("sweep", ("algorithm_hyperparams the same by algorithm", "seeds: [0, 1, 2]")),
    ]:
        with pytest.raises(SystemExit):
            main([command, "-h"])
        printed = capsys.readouterr().out
        assert all(text in printed for text in shown)


@pytest.mark.parametrize(
    ("command", "arguments", "said"),
    [
        ("train", ["--nosuch"], "the following arguments are required: --env"),
        ("train", ["--env", "CartPole-v1", "--eval-episodes", "x"], "--eval-episodes: must be a"),
        ("tune", ["--workers", "0"], "--workers/--n-jobs: must be a whole number >= 1, got 0"),
        ("tune", ["--trial-seeds", "two"], "--trial-seeds: must be a whole number >= 1, got two"),
        ("evaluate", ["-n", "0"], "-n/--episodes: must be a whole number >= 1, got 0"),
        ("record", ["--env", "x", "-n", "0"], "-n/--n-timesteps: must be a whole number >= 1"),
        ("record", ["--env", "x", "--n-envs", "0"], "--n-envs: must be a whole number >= 1"),
        ("plot", ["--window", "0.5"], "--window: must be a whole number >= 1, got 0.5"),
        ("sweep", ["spec.yml", "--workers", "0"], "--workers: must be a whole number >= 1, got 0"),
        ("label", ["--env", "x", "--clips", "0"], "--clips: must be a whole number >= 1, got 0"),
        ("label", ["--env", "x", "--length", "0"], "--length: must be a whole number >= 1, got 0"),
        ("offline", ["--env", "x", "--gradient-steps", "0"], "--gradient-steps: must be a whole"),
        ("export", ["--env", "x", "--observations", "0"], "--observations: must be a whole"),
        ("push", ["--env", "x", "-orga", "me", "--eval-episodes", "0"], "--eval-episodes: must be"),
        ("lm", [], "the following arguments are required: --model"),
    ],
)
def test_a_wrong_argument_is_one_sentence_and_the_last(
    command: str, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, *arguments])
    assert stop.value.code == 2
    usage, error = capsys.readouterr().err.splitlines()[-2:]
    assert usage == f"usage: sb3-pmpo {command} [options], which sb3-pmpo {command} --help lists"
    assert error.startswith(f"sb3-pmpo {command}: error: ")
    assert said in error
