"""d3rlpy's BC and CRR on the log of Table 1's stand-in.

    python -m venv d3rlpy-venv && d3rlpy-venv/bin/pip install torch==2.13.0 d3rlpy==2.8.1
    python -m benchmarks.labelled.d3rlpy_rows --python d3rlpy-venv/bin/python

The rows stand beside ours in ``results/labelled_table1.csv``, in the same environment, with as many
gradient steps, from the same evaluation; d3rlpy's settings are its own.
"""

from __future__ import annotations

import argparse
import subprocess
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch as th

from benchmarks import records
from benchmarks.labelled.judges import make_env
from benchmarks.labelled.rows import FIELDS, Domain, evaluate, read_plan
from benchmarks.labelled.walkers import RESULTS, TASK, mixtures, score, write_log
from benchmarks.provenance import provenance

PROGRAM = Path(__file__).with_name("d3rlpy_fit.py")
ALGORITHMS = ("BC", "CRR")


class Policy:
    """A policy that d3rlpy has written, called as SB3's models are."""

    def __init__(self, path: Path) -> None:
        self.policy = th.jit.load(path)

    def predict(self, seen: np.ndarray, deterministic: bool = True) -> tuple[np.ndarray, None]:
        """Return the action for one observation."""
        with th.no_grad():
            action = self.policy(th.as_tensor(seen, dtype=th.float32)[None])
        return action[0].numpy(), None


def write_columns(path: Path, plan: dict[str, Any]) -> None:
    """Write the log as an ``.npz`` that needs nothing of ours to read."""
    data, _ = write_log("table1", mixtures(plan)["table1"])
    ends = np.zeros(len(data))
    ends[[rows.stop - 1 for rows in data.episodes()]] = 1.0
    rows = data.rows(np.arange(len(data)))
    columns = {"observations": rows.observations, "actions": rows.actions}
    np.savez(path, rewards=data.required("rewards"), timeouts=ends, **columns)


def main() -> None:
    """Make the rows that are missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", required=True, help="interpreter that has d3rlpy")
    args = parser.parse_args()
    th.set_num_threads(1)
    plan = read_plan("table1")
    log, policy = Path("runs/labelled/table1.npz"), Path("runs/labelled/d3rlpy.pt")
    write_columns(log, plan)
    results = RESULTS / "labelled_table1.csv"
    domain = Domain(lambda: make_env(TASK), score)
    for seed, algorithm in product(plan["seeds"], ALGORITHMS):
        rows = records.read(results)
        name = f"d3rlpy {algorithm}"
        if (name, str(seed)) in {(row["row"], str(row["seed"])) for row in rows}:
            continue
        steps = str(plan["gradient_steps"])
        subprocess.run(
            [args.python, str(PROGRAM), str(log), algorithm, str(seed), steps, str(policy)],
            check=True,
        )
        found = {"log": "table1", "row": name, "seed": seed}
        found |= evaluate(Policy(policy), domain, seed, plan["evaluation_episodes"])
        print(found, flush=True)
        records.write(results, [*rows, found | provenance()], FIELDS)


if __name__ == "__main__":
    main()
