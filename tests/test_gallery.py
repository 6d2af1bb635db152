"""The program that packs policies from the benchmarks' runs, and its page."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
from test_benchmarks import SMALL

from benchmarks import gallery, learning, records, training
from benchmarks.models import algorithm_class, env_id_of
from benchmarks.records import Places
from benchmarks.suites import Run
from sb3_pmpo import pretrained


@pytest.fixture(scope="module")
def run() -> Run:
    return Run("small", "PMPO-small", "Pendulum-v1", 3, SMALL, 200, 200, 1, 1)


@pytest.fixture(scope="module")
def places(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Places:
    """A short run, trained."""
    root = tmp_path_factory.mktemp("runs")
    places = Places(root / "results", root / "state")
    training.train(run, places)
    return places


def test_a_run_becomes_a_policy_with_its_score_and_curve(
    run: Run, places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gallery, "EPISODES", 3)
    path = tmp_path / "Pendulum-v1.safetensors"
    assert gallery.pack_run(run, places, path, "the only seed")
    told = pretrained.about(path)
    (row,) = records.read(places.rows(run))
    assert told["curve"] == [[200, float(row["return_mean"])]]
    assert (told["steps"], told["seed"], told["chosen"]) == (200, 3, "the only seed")
    assert told["env_wrapper"] == [{"sb3_pmpo.envs.ActionRepeat": {"n_repeats": 2}}]
    assert "torch=" in told["versions"]
    assert "benchmarks.learning run small --tasks Pendulum-v1" in told["command"]
    # The score is that of the file, over other episodes than those of the run.
    model = algorithm_class("PMPO").load(gallery.last_model(places.checkpoints(run)))
    assert gallery.measure(model, run) == pretrained.read(path).score
    assert gallery.measure(pretrained.load(path), run) == pretrained.read(path).score
    assert not gallery.pack_run(run, places, path, "no better")
    gallery.draw_curve("Pendulum-v1", pretrained.read(path), tmp_path / "curve.svg")
    assert "<svg" in (tmp_path / "curve.svg").read_text()


def test_weights_are_rounded_where_the_file_would_be_too_large(
    run: Run, places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gallery, "EPISODES", 3)
    path = tmp_path / "Pendulum-v1.safetensors"
    gallery.pack_run(run, places, path, "the only seed")
    size = path.stat().st_size
    path.unlink()
    monkeypatch.setattr(gallery, "LARGEST", size - 1)
    assert gallery.pack_run(run, places, path, "the only seed")
    assert path.stat().st_size < size
    assert gallery.measure(pretrained.load(path), run) == pretrained.read(path).score
    path.unlink()
    monkeypatch.setattr(gallery, "LARGEST", 100)
    with pytest.raises(ValueError, match="in float16 has"):
        gallery.pack_run(run, places, path, "the only seed")
    assert not path.exists()


def test_the_page_is_that_of_the_policies_that_ship() -> None:
    assert (gallery.DOCS / "gallery.md").read_text() == gallery.text()
    for name in pretrained.names():
        picture = gallery.DOCS / gallery.IMAGES / f"{name}.webp"
        assert 1000 < picture.stat().st_size <= gallery.LARGEST_PICTURE
        assert (gallery.DOCS / gallery.IMAGES / f"{name}.svg").is_file()


@pytest.mark.parametrize("name", pretrained.names())
def test_the_command_of_a_policy_trains_it_again(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It finds none of the rows that are in the repository, and names what is not a default."""
    told = pretrained.about(name)
    entry = gallery.text().partition(f"## {name}\n")[2].partition("\n## ")[0]
    (command,) = [line for line in entry.splitlines() if line.startswith("python -m ")]
    asked: list[Any] = []
    monkeypatch.setattr(
        learning, "run_locally", lambda train, jobs, workers: asked.extend(jobs) or []
    )
    monkeypatch.setattr("sys.argv", shlex.split(command)[2:])
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    learning.main()
    ((run, _),) = asked
    assert (run.seed, run.steps) == (told["seed"], told["steps"])
    assert env_id_of(run.task) == told["env"]
    for argument, value in run.arguments.items():
        assert f"`{argument}={value}`" in entry
