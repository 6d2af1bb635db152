"""Where commands write: not over others' files, and not where nothing can be written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sb3_pmpo.tools.outputs import OutputError, check_output


def test_a_new_file_and_ones_own_are_fine(tmp_path: Path) -> None:
    check_output(tmp_path / "new" / "folder" / "x.csv", "mine")
    (tmp_path / "x.csv").write_text("mine,1")
    check_output(tmp_path / "x.csv", "mine")


def test_others_files_and_folders_stay(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("theirs")
    with pytest.raises(OutputError, match="this command did not write it"):
        check_output(tmp_path / "x.csv", "mine")
    with pytest.raises(OutputError, match="is a folder: name a file"):
        check_output(tmp_path, "mine")


def test_what_cannot_be_written_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="file is no folder"):
        check_output(tmp_path / "file" / "more" / "x.csv", "mine")
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    with pytest.raises(OutputError, match="cannot be written to: name another path"):
        check_output(tmp_path / "x.csv", "mine")
