"""Compiled networks: the same numbers, the same files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch as th
from toys import Toy, assert_equal, parameters, small

from sb3_pmpo import PMPO


@pytest.fixture(autouse=True)
def _no_compiled_code_is_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    import torch._inductor.config as settings  # slow to import

    # One process compiles, and whether the compiler knows this processor's instructions is not
    # asked: for each set of them torch compiles a program and imports itself anew.
    monkeypatch.setattr(settings, "compile_threads", 1)
    monkeypatch.setattr(settings.cpp, "vec_isa_ok", True)
    yield
    th.compiler.reset()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the compiler's own
def test_compiled_networks_give_the_same_values_and_save_load_and_resume(tmp_path: Path) -> None:
    plain, compiled = small(Toy()), small(Toy(), compile=True)
    observations, actions = th.rand(5, 2) * 2 - 1, th.rand(3, 5, 1) * 2 - 1
    assert_equal(parameters(plain.policy), parameters(compiled.policy))
    th.testing.assert_close(
        compiled.critic.q_values(observations, actions),
        plain.critic.q_values(observations, actions),
    )
    th.testing.assert_close(
        compiled.actor.distribution(observations).mean, plain.actor.distribution(observations).mean
    )
    compiled.learn(60)
    compiled.save(tmp_path / "model")
    for arguments in ({}, {"compile": False}):
        loaded = PMPO.load(tmp_path / "model", env=Toy(), **arguments)
        assert_equal(parameters(loaded.policy), parameters(compiled.policy))
        assert loaded.compile == arguments.get("compile", True)
        is_compiled = loaded.critic.ensemble._compiled_call_impl is not None
        assert is_compiled == loaded.compile
    compiled.set_parameters(str(tmp_path / "model.zip"))
    before = parameters(compiled.actor)
    compiled.learn(40, reset_num_timesteps=False)
    assert any(
        not th.equal(value, before[name]) for name, value in parameters(compiled.actor).items()
    )
