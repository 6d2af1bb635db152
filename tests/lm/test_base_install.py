"""Without the extra the package imports, and says what is missing."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

WITHOUT = textwrap.dedent("""
    import sys

    class Missing:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] in ("transformers", "trl", "datasets", "tokenizers", "peft"):
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    sys.meta_path.insert(0, Missing())
""")


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WITHOUT + textwrap.dedent(code)], capture_output=True, text=True
    )


NAMES = ["PMPOTrainer", "PMPOConfig", "PMPOOfflineTrainer", "PMPOOfflineConfig"]


def test_it_says_which_extra_is_missing():
    done = run(f"""
        import sb3_pmpo.lm
        for name in {NAMES}:
            try:
                getattr(sb3_pmpo.lm, name)
            except ImportError as error:
                print(error)
    """)
    lines = done.stdout.splitlines()
    assert len(lines) == len(NAMES), done.stderr
    assert all("pip install 'sb3_pmpo[lm]'" in line for line in lines)


def test_what_needs_torch_only_imports_without_it():
    code = "import sb3_pmpo, sb3_pmpo.lm, sb3_pmpo.core.sequence, sb3_pmpo.lm.labelling"
    done = run(code + "\nassert 'stable_baselines3' not in sys.modules")
    assert done.returncode == 0, done.stderr


def test_the_command_says_which_extra_is_missing():
    code = "from sb3_pmpo.lm.program import main\nsys.exit(main(['--model', 'x', '--labels', 'y']))"
    done = run(code)
    assert done.returncode == 2
    assert "pip install 'sb3_pmpo[lm]'" in done.stderr


def test_an_unknown_name_is_an_attribute_error():
    import sb3_pmpo.lm

    with pytest.raises(AttributeError, match="no attribute 'Trainer'"):
        sb3_pmpo.lm.Trainer  # noqa: B018
