"""What the README says is what the code does."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from stable_baselines3.common.logger import configure

from sb3_pmpo import DPO, MPO, PMPO, top_k
from sb3_pmpo.tools.runs.spec import Spec, plan_runs
from sb3_pmpo.tools.settings import to_arguments

README = (Path(__file__).parent.parent / "README.md").read_text()


def documented_metrics() -> set[str]:
    table = README.split("## What is logged")[1].split("\n## ")[0]
    names: set[str] = set()
    for row in re.findall(r"^\| (`.*?) \|", table, flags=re.MULTILINE):
        first, *rest = re.findall(r"`(\w+)`", row)
        names.add(first)
        for other in rest:  # `kl_mean`, `_std` stands for kl_mean and kl_std
            names.add(first.removesuffix("_mean") + other if other.startswith("_") else other)
    return names


def logged_metrics(algorithm: type, tmp_path: Path, n_bins: int | None, **kwargs: Any) -> set[str]:
    model = algorithm(
        "MlpPolicy", "Pendulum-v1", learning_starts=190, buffer_size=500,
        policy_kwargs={"net_arch": [8], "n_bins": n_bins}, **kwargs,
    )  # fmt: skip
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(210, log_interval=1)  # an episode of Pendulum has 200 steps
    model.logger.close()
    header = (tmp_path / "progress.csv").read_text().splitlines()[0].split(",")
    return {name.removeprefix("train/") for name in header if name.startswith("train/")}


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_table_of_metrics_is_complete_and_true(tmp_path: Path) -> None:
    logged = logged_metrics(PMPO, tmp_path / "joint", None, decoupled=False, beta=2.0)
    for algorithm, n_bins in product((PMPO, MPO, DPO), (None, 3)):
        logged |= logged_metrics(algorithm, tmp_path / f"{algorithm.__name__}{n_bins}", n_bins)
    assert logged == documented_metrics()


@pytest.mark.slow
def test_the_readme_example_runs() -> None:
    """The ten-line example, with fewer steps."""
    code = README.split("```python\n")[1].split("```")[0]
    assert "learn(25_000, progress_bar=True)" in code
    code = code.replace("25_000, progress_bar=True", "600").replace(
        "model.get_env())", "model.get_env(), 1)"
    )
    assert len([line for line in code.splitlines() if line.strip()]) <= 12
    exec(compile(code.replace('model.save("pmpo_cartpole")', ""), "README", "exec"), {})


def test_the_readmes_sweep_is_a_sweep(tmp_path: Path) -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", README, flags=re.DOTALL)
    (tmp_path / "spec.yml").write_text(text)
    runs = plan_runs(Spec.read(tmp_path / "spec.yml"))
    assert len(runs) == 3 * 2 * 3
    assert to_arguments(runs[0].hyperparameters)["labeller"] == top_k(2)


@pytest.mark.parametrize("name", ["too_fast", "safe"])
def test_the_readme_labellers_reject_strong_actions(name: str) -> None:
    import torch as th

    from sb3_pmpo import Candidates, from_masks

    code = README.split(f"def {name}")[1].split("\n\n\n")[0]
    scope: dict[str, object] = {"from_masks": from_masks}
    exec(f"def {name}" + code, scope)
    candidates = Candidates(
        scores=th.tensor([[3.0], [2.5], [1.0]]), actions=th.tensor([[[0.95]], [[0.1]], [[0.0]]])
    )
    accept, reject = scope[name](candidates)  # type: ignore[operator]  # defined by exec
    assert accept[:, 0].tolist() == [0.0, float(name == "too_fast"), 0.0]
    assert reject[:, 0].tolist() == [1.0, 0.0, 0.0]
