"""A short form of ``python -m tests.faults.fuzz --calls 10000``."""

from __future__ import annotations

import pytest
from faults import fuzz


@pytest.mark.filterwarnings("ignore")
def test_each_call_runs_or_is_refused_by_name_at_construction(
    capsys: pytest.CaptureFixture,
) -> None:
    figures = fuzz.report(fuzz.fuzz(range(300), seed=26))
    assert figures.clean, capsys.readouterr().out
    assert figures.kinds["ran"] > 50
    assert figures.kinds["refused"] > 100
