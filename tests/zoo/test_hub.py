"""Publishing a trained agent: the folder, the card, and that the card's own commands work."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from huggingface_sb3 import EnvironmentName
from runs import WALKER, run, run_walker

from sb3_pmpo import PMPO
from sb3_pmpo.tools.cli import main
from sb3_pmpo.tools.zoo.agents import find_agent, make_parser
from sb3_pmpo.tools.zoo.hub import copy_run, push


@pytest.fixture(scope="module")
def pushed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a dry run: VecNormalize, an action repeat, wrappers of the Control Suite."""
    logs = tmp_path_factory.mktemp("logs")
    folder = run_walker(logs, normalize=True)
    assert main(["push", *_arguments(logs), "--dry-run"]) == 0
    return folder / "hub"


def _arguments(logs: Path, env: str = WALKER) -> list[str]:
    return ["--env", env, "-f", str(logs), "-orga", "me", "--eval-episodes", "2", "--no-render"]


def test_a_dry_run_makes_what_the_zoo_reads(pushed: Path) -> None:
    assert {path.name for path in pushed.iterdir()} == {
        *("README.md", "args.yml", "config.yml", "env_kwargs.yml", "hyperparams.yml"),
        *("pmpo-dm_control-walker-walk-v0.zip", "results.json", "train_eval_metrics.zip"),
        "vec_normalize.pkl",
    }
    model = PMPO.load(pushed / "pmpo-dm_control-walker-walk-v0.zip", buffer_size=1)
    assert model.num_timesteps == 30


def test_the_card_has_scores_and_versions(pushed: Path) -> None:
    results = json.loads((pushed / "results.json").read_text())
    score = f"{results['mean_reward']:.2f} +/- {results['std_reward']:.2f}"
    assert results["n_eval_episodes"] == len(results["episode_rewards"]) == 2
    card = ModelCard.load(pushed / "README.md")
    data = card.data.to_dict()
    assert data["pipeline_tag"] == "reinforcement-learning"
    assert {WALKER, "sb3_pmpo"} <= set(data["tags"])
    (metric,) = data["model-index"][0]["results"][0]["metrics"]
    assert (metric["type"], metric["value"]) == ("mean_reward", score)
    assert f"**{score}**" in card.text
    assert f"| sb3_pmpo | {results['versions']['sb3_pmpo']} |" in card.text
    assert "applied 2 times" in card.text
    assert "replay.mp4" not in card.text


def test_the_cards_python_measures_the_score_again(pushed: Path) -> None:
    card = (pushed / "README.md").read_text()
    (snippet,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    local = snippet.replace(
        "snapshot_download('me/pmpo-dm_control-walker-walk-v0')", repr(str(pushed))
    )
    assert local != snippet
    done = subprocess.run([sys.executable, "-c", local], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    score = done.stdout.splitlines()[-1]
    assert f"**{score}**" in card


def test_a_file_of_the_users_in_the_folder_stays(
    pushed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    notes = pushed / "my_notes.txt"
    notes.write_text("mine")
    with pytest.raises(SystemExit):
        main(["push", *_arguments(pushed.parents[2]), "--dry-run"])
    assert "holds my_notes.txt, which push did not write" in capsys.readouterr().err
    assert notes.read_text() == "mine"
    notes.unlink()


def test_torn_evaluations_are_left_out(pushed: Path, tmp_path: Path) -> None:
    run = pushed.parent
    torn = run / "evaluations.npz"
    torn.write_bytes(b"PK")
    given = ["--env", WALKER, "-f", str(run.parents[1])]
    with pytest.warns(UserWarning, match=r"evaluations\.npz is empty or torn, and is left out"):
        copy_run(find_agent(make_parser("push", "").parse_args(given)), tmp_path)
    torn.unlink()
    with zipfile.ZipFile(tmp_path / "train_eval_metrics.zip") as archive:
        assert archive.namelist() == ["0.monitor.csv"]


def test_the_cards_command_trains_again(
    pushed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = (pushed / "README.md").read_text()
    (command,) = re.findall(r"^sb3-pmpo (train .*)$", card, flags=re.MULTILINE)
    monkeypatch.chdir(pushed)
    assert main([*command.split(), "-f", str(tmp_path), "--eval-freq", "-1"]) == 0
    model = PMPO.load(next(tmp_path.rglob("dm_control-walker-walk-v0.zip")))
    before = PMPO.load(pushed / "pmpo-dm_control-walker-walk-v0.zip")
    assert model.num_timesteps == before.num_timesteps
    assert model.policy_kwargs == before.policy_kwargs
    assert model.seed == before.seed == 3


def test_the_card_of_a_resumed_run_has_its_steps_and_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(tmp_path / "logs", "Pendulum-v1", "pmpo", "--save-replay-buffer")
    agent = first / "Pendulum-v1.zip"
    last = run(tmp_path / "logs", "Pendulum-v1", "pmpo", "-i", str(agent), "-n", "25")
    arguments = [*_arguments(tmp_path / "logs", "Pendulum-v1"), "--dry-run"]
    assert push(arguments) == 0
    card = (last / "hub" / "README.md").read_text()
    assert "after 55 decisions, 55 environment steps" in card
    commands = re.findall(r"^sb3-pmpo (train .*)$", card, flags=re.MULTILINE)
    assert len(commands) == 2
    monkeypatch.chdir(last / "hub")
    for command in commands:
        assert main([*command.split(), "--eval-freq", "-1"]) == 0
    model = PMPO.load("again/pmpo/Pendulum-v1_2/Pendulum-v1.zip")
    assert model.num_timesteps == 55
    (last / "hub" / "README.md").write_text("mine")
    with pytest.raises(SystemExit):
        push(arguments)


def test_the_card_of_a_run_that_went_on_in_its_folder_has_one_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    train = [
        "train",
        "--env",
        "Pendulum-v1",
        "--eval-freq",
        "-1",
        "--save-freq",
        "10",
        "-f",
        "logs",
    ]
    tiny = ["-params", "policy_kwargs:dict(net_arch=[8])", "learning_starts:5", "batch_size:8"]
    assert main([*train, "-n", "20", *tiny]) == 0
    assert main(["train", "--env", "Pendulum-v1", "-i", "logs/pmpo/Pendulum-v1_1", "-n", "10"]) == 0
    assert main(["push", *_arguments(tmp_path / "logs", "Pendulum-v1"), "--dry-run"]) == 0
    card = (tmp_path / "logs/pmpo/Pendulum-v1_1/hub/README.md").read_text()
    assert "after 30 decisions" in card
    (command,) = card.split("```bash\n")[-1].split("\n```")[0].splitlines()
    assert command.endswith(" -n 30")
    assert "which was not there" not in card


@pytest.mark.parametrize("went_on", ["first", "second"])
def test_the_card_of_a_run_that_was_resumed_twice_has_its_parts(
    went_on: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once in a folder of its own, once where it was, in either order."""
    monkeypatch.chdir(tmp_path)
    folder = run(
        tmp_path / "logs", "Pendulum-v1", "pmpo", "--save-freq", "10", "--save-replay-buffer"
    )
    in_place = ("--env", "Pendulum-v1", "-n", "10", "-f", "logs", "-i")
    model = folder / "Pendulum-v1.zip"
    if went_on == "first":
        assert main(["train", *in_place, str(folder)]) == 0
    last = run(tmp_path / "logs", "Pendulum-v1", "pmpo", "-i", str(model), "-n", "25",
               "--save-freq", "5")  # fmt: skip
    if went_on == "second":
        assert main(["train", *in_place, str(last)]) == 0
    assert main(["push", *_arguments(tmp_path / "logs", "Pendulum-v1"), "--dry-run"]) == 0
    card = (last / "hub/README.md").read_text()
    assert "after 65 decisions" in card
    assert "which was not there" not in card
    commands = card.split("```bash\n")[-1].split("\n```")[0].splitlines()
    lengths = [re.findall(r" -n (\d+) ", f"{command} ") for command in commands]
    assert lengths == ([["40"], ["25"]] if went_on == "first" else [["30"], ["35"]])
    assert "-i again/pmpo/Pendulum-v1_1/Pendulum-v1.zip" in commands[1]


def test_the_zoo_downloads_it_and_enjoys_it(
    pushed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from rl_zoo3 import load_from_hub

    def download(repo_id: str, filename: str) -> str:
        assert repo_id == f"me/pmpo-{EnvironmentName(WALKER)}"
        return str(pushed / filename)

    monkeypatch.setattr(load_from_hub, "load_from_hub", download)
    load_from_hub.download_from_hub("pmpo", EnvironmentName(WALKER), 0, str(tmp_path), "me")
    assert main(["enjoy", "--env", WALKER, "-f", str(tmp_path), "--no-render", "-n", "501"]) == 0
    printed = capsys.readouterr().out
    assert "Loading running average" in printed  # of VecNormalize
    assert re.search(r"Mean episode length: 500.00 .* decisions", printed)


class Hub:
    """Stands for the Hub's client: remembers what it is asked to do."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any]] = []

    def create_repo(self, repo_id: str, *, exist_ok: bool) -> str:
        self.asked.append(("create", repo_id))
        return f"https://hub/{repo_id}"

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> None:
        names = {path.name for path in folder_path.iterdir()}
        self.asked.append(("upload", (repo_id, "README.md" in names, commit_message)))


def test_without_dry_run_it_uploads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, "Pendulum-v1", "mpo")
    arguments = ["--algo", "mpo", *_arguments(tmp_path, "Pendulum-v1"), "-name", "swing"]
    hub = Hub()
    assert push([*arguments, "-m", "hello", "--dry-run"], hub) == 0  # type: ignore[arg-type]  # all it uses
    assert hub.asked == []
    assert push([*arguments, "-m", "hello"], hub) == 0  # type: ignore[arg-type]  # all it uses
    assert hub.asked == [("create", "me/swing"), ("upload", ("me/swing", True, "hello"))]
    assert "Published at https://hub/me/swing" in capsys.readouterr().out


def test_a_missing_agent_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["push", *_arguments(tmp_path)])
    assert "-f names the folder that train wrote" in capsys.readouterr().err
