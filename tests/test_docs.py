"""What the documentation says of arguments, metrics and sweeps is what the code does."""

from __future__ import annotations

import configparser
import inspect
import re
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from stable_baselines3 import SAC
from stable_baselines3.common.logger import configure
from toys import Toy, small

from sb3_pmpo import DPO, MPO, PMPO, top_k
from sb3_pmpo.tools.runs.spec import Spec, plan_runs
from sb3_pmpo.tools.settings import to_arguments

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


def documented_metrics() -> set[str]:
    table = (DOCS / "logged.md").read_text().split("## What is logged")[1].split("\n## ")[0]
    names: set[str] = set()
    for row in re.findall(r"^\| (`.*?) \|", table, flags=re.MULTILINE):
        first, *rest = re.findall(r"`(\w+)`", row)
        names.add(first)
        for other in rest:  # `kl_mean`, `_std` stands for kl_mean and kl_std
            names.add(first.removesuffix("_mean") + other if other.startswith("_") else other)
    return names


def logged_metrics(algorithm: type, tmp_path: Path, n_bins: int | None, **kwargs: Any) -> set[str]:
    policy_kwargs = {"net_arch": [8], "n_bins": n_bins}
    model = small(Toy(), algorithm=algorithm, policy_kwargs=policy_kwargs, **kwargs)
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(40, log_interval=1)
    model.logger.close()
    header = (tmp_path / "progress.csv").read_text().splitlines()[0].split(",")
    return {name.removeprefix("train/") for name in header if name.startswith("train/")}


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_table_of_metrics_is_complete_and_true(tmp_path: Path) -> None:
    logged = logged_metrics(PMPO, tmp_path / "joint", None, decoupled=False, beta=2.0)
    for algorithm, n_bins in product((PMPO, MPO, DPO), (None, 3)):
        logged |= logged_metrics(algorithm, tmp_path / f"{algorithm.__name__}{n_bins}", n_bins)
    assert logged == documented_metrics()


def test_the_page_for_users_of_sac_has_every_argument() -> None:
    page = (DOCS / "coming-from-sac.md").read_text()
    table = page.split("## Argument by argument")[1].split("\n\n")[1].splitlines()
    rows = {name: row for row in table for name in re.findall(r"^\| `(\w+)` ", row)}
    theirs, ours = (inspect.signature(each).parameters for each in (SAC, PMPO))
    for name, parameter in theirs.items():
        if name.startswith("_"):
            continue
        assert name in rows, f"SAC's {name} is not in the table"
        _, _, default, what, own, _ = (cell.strip() for cell in rows[name].split("|")[:6])
        if parameter.default is not parameter.empty:
            assert default.replace(",", "").strip('"') == plain(parameter.default), name
        if what == "same" and own not in ("", "same"):
            assert own.replace(",", "").strip('"') == plain(ours[name].default), name
        assert (name in ours) == (what in ("same", "refused")), name
    for name in set(ours) - set(theirs):
        assert f"`{name}`" in page, f"PMPO's {name} is not on the page"


def plain(value: Any) -> str:
    """Write a default as the page does: 3e-4, 1000000, 0.005."""
    if isinstance(value, float) and value < 1e-2 and value != 0.005:
        mantissa, exponent = f"{value:.0e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    return str(value)


def test_the_supported_versions_are_those_of_setup_and_constraints() -> None:
    table = (DOCS / "install.md").read_text().split("## Supported versions")[1].split("\n## ")[0]
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    asked = config["options"]["install_requires"] + config["options.extras_require"]["dmc"]
    lowest = dict(re.findall(r"^([\w-]+)>=([\d.]+)", asked, flags=re.MULTILINE))
    pins = (ROOT / "constraints.txt").read_text()
    newest = dict(re.findall(r"^([\w-]+)==([\d.]+)", pins.replace("_", "-"), flags=re.MULTILINE))
    rows = re.findall(r"^\| ([\w-]+)[^|]* \| ([\d.]+) \| ([\d.]+)", table, flags=re.MULTILINE)
    stated = {name.lower(): (low, high) for name, low, high in rows}
    assert stated.pop("python")[0] == config["options"]["python_requires"].removeprefix(">=")
    assert set(stated) == {"torch", "stable-baselines3", "gymnasium", "numpy", "mujoco"}
    for name, (low, high) in stated.items():
        assert low.removesuffix(".0") == lowest[name].removesuffix(".0"), name
        assert newest[name].startswith(high), name


def test_the_front_page_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_the_documented_sweep_is_a_sweep(tmp_path: Path) -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", (DOCS / "zoo.md").read_text(), flags=re.DOTALL)
    (tmp_path / "spec.yml").write_text(text)
    runs = plan_runs(Spec.read(tmp_path / "spec.yml"))
    assert len(runs) == 3 * 2 * 3
    assert to_arguments(runs[0].hyperparameters)["labeller"] == top_k(2)
