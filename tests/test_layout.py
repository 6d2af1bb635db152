"""The Custom Scalars tab shows what is logged, and nothing else is in it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from toys import Toy, small

from sb3_pmpo import DPO, MPO, PMPO
from sb3_pmpo.tools.tensorboard import LAYOUT, TensorBoardLayout

#: Logged for the console, or only by environments that report a success.
ELSEWHERE = {"eval/success_rate", "rollout/success_rate", "eval/mean_reward", "eval/mean_ep_length"}


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> list[EventAccumulator]:
    """One run of each kind of policy and loss."""
    runs: list[tuple[type, dict[str, Any]]] = [
        (PMPO, {}),
        (PMPO, {"decoupled": False, "policy_kwargs": {"net_arch": [8], "n_bins": 3}}),
        (MPO, {}),
        (DPO, {}),
    ]
    found = []
    for number, (algorithm, arguments) in enumerate(runs):
        folder = tmp_path_factory.mktemp(f"tb{number}")
        model = small(Toy(), algorithm=algorithm, tensorboard_log=str(folder), **arguments)
        model.learn(60, callback=TensorBoardLayout(), log_interval=1)
        (events,) = folder.iterdir()
        found.append(EventAccumulator(str(events)).Reload())
    return found


def patterns() -> set[str]:
    return {tag for charts in LAYOUT.values() for tags in charts.values() for tag in tags}


def test_every_diagnostic_has_a_chart_and_every_chart_a_diagnostic(
    logged: list[EventAccumulator],
) -> None:
    tags = {tag for run in logged for tag in run.Tags()["scalars"]}
    assert {tag for tag in tags if not any(re.fullmatch(p, tag) for p in patterns())} == set()
    unused = {p for p in patterns() if not any(re.fullmatch(p, tag) for tag in tags)}
    assert unused == ELSEWHERE


def test_tensorboard_reads_the_layout(logged: list[EventAccumulator]) -> None:
    for run in logged:
        (event,) = run.Tensors("custom_scalars__config__")
        layout = Layout.FromString(event.tensor_proto.string_val[0])
        assert [category.title for category in layout.category] == list(LAYOUT)
        titles = [chart.title for chart in layout.category[2].chart]
        assert titles == list(LAYOUT["3 policy"])


def test_without_tensorboard_it_does_nothing(tmp_path: Path) -> None:
    model = small(Toy())
    model.learn(20, callback=TensorBoardLayout())
    assert model.num_timesteps == 20
