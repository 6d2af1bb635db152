"""Without the extra the package imports, and says what is missing."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from typing import Any

import pytest

NAMES = ["PMPOTrainer", "PMPOConfig", "PMPOOfflineTrainer", "PMPOOfflineConfig"]

#: What a fresh interpreter does where the extra is not installed.
WITHOUT = textwrap.dedent("""
    import contextlib, io, json, sys

    class Missing:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] in ("transformers", "trl", "datasets", "tokenizers", "peft"):
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    sys.meta_path.insert(0, Missing())
    found = {}

    import sb3_pmpo, sb3_pmpo.lm, sb3_pmpo.core.sequence, sb3_pmpo.lm.labelling
    found["SB3"] = "stable_baselines3" in sys.modules

    found["names"] = []
    for name in NAMES:
        try:
            getattr(sb3_pmpo.lm, name)
        except ImportError as error:
            found["names"].append(str(error))

    from sb3_pmpo.lm.program import main
    with contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            found["code"] = main(["--model", "x", "--labels", "y"])
        except SystemExit as end:
            found["code"] = end.code
    found["said"] = said.getvalue()
    print(json.dumps(found))
""").replace("NAMES", repr(NAMES))


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_it_says_which_extra_is_missing(found):
    assert len(found["names"]) == len(NAMES)
    assert all("pip install 'sb3_pmpo[lm]'" in line for line in found["names"])


def test_what_needs_torch_only_imports_without_sb3(found):
    assert not found["SB3"]


def test_the_command_says_which_extra_is_missing(found):
    assert found["code"] == 2
    assert "pip install 'sb3_pmpo[lm]'" in found["said"]


def test_an_unknown_name_is_an_attribute_error():
    import sb3_pmpo.lm

    with pytest.raises(AttributeError, match="no attribute 'Trainer'"):
        sb3_pmpo.lm.Trainer  # noqa: B018
