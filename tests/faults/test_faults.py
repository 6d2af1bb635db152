"""A short form of ``python -m tests.faults`` and ``python -m tests.faults.soak``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from faults import disk, kills, soak, workers

from sb3_pmpo.tools.zoo import register

pytestmark = [
    pytest.mark.faults,
    # Of environments that a process which was killed, or failed, did not close.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(autouse=True)
def known() -> None:
    register()


@pytest.mark.parametrize("program", [kills.Train, kills.Sweep])
def test_kill_9_loses_nothing(program: type[kills.Trained], tmp_path: Path) -> None:
    assert "all equal" in kills.kill_at_random(program(tmp_path, 50), 2)


def test_kill_9_in_the_middle_of_a_write(tmp_path: Path) -> None:
    assert "all ends equal" in kills.kill_at_writes(kills.Train(tmp_path, 35), 1, most=3)


@pytest.fixture
def mounted(tmp_path: Path) -> Callable:
    def on(what: Callable[[Path], str]) -> str:
        try:
            with disk.disk(tmp_path / "disk", 8) as place:
                return what(place)
        except disk.NoDiskError as error:
            pytest.skip(f"no disk can be mounted here: {error}")

    return on


@pytest.mark.parametrize("algorithm", ["pmpo", "sac"])
def test_a_full_disk(algorithm: str, mounted: Callable) -> None:
    assert "resumed" in mounted(lambda place: disk.fill_while_training(place, algorithm))


def test_a_read_only_disk(mounted: Callable) -> None:
    assert "Read-only" in mounted(disk.read_only)


def test_torn_files_are_named(tmp_path: Path) -> None:
    some = ["-model.zip", "config.yml", "evaluations"]
    assert "refused by name" in disk.tear(tmp_path, some)


@pytest.mark.parametrize("what", ["die", "hang"])
def test_a_worker_is_lost(what: str, tmp_path: Path) -> None:
    assert "no orphan" in workers.lose_a_worker(tmp_path, what)


@pytest.mark.parametrize("what", ["observation", "terminal", "reward"])
@pytest.mark.parametrize("normalize", [False, True])
def test_nan_from_the_last_environment(what: str, normalize: bool) -> None:
    assert "environment 2" in workers.nan_from_one(2, what, 15, normalize=normalize)


def test_memory_is_flat(tmp_path: Path) -> None:
    assert soak.growth(soak.soak(400, tmp_path, 4)) < soak.ALLOWED
