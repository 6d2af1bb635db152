"""Measure the memory of learning from more rows than fit: ``python -m benchmarks.labelled.memory``.

A child process writes a data set of 10 million transitions with observations of 50 floats. This one
opens it, which checks every row, and learns; its largest resident set is what is reported.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import shutil
import time
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap

from benchmarks.provenance import provenance
from sb3_pmpo import PMPO
from sb3_pmpo.offline import LabelledDataset

RESULT = Path("benchmarks/results/offline_memory.json")
CHUNK = 100_000


def write(folder: Path, rows: int, width: int) -> None:
    """Write random transitions, a chunk at a time, without holding them."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    columns = {
        "observations": (width,),
        "next_observations": (width,),
        "actions": (6,),
        "rewards": (),
    }
    for name, shape in columns.items():
        array = open_memmap(folder / f"{name}.npy", "w+", np.float32, (rows, *shape))
        for start in range(0, rows, CHUNK):
            part = array[start : start + CHUNK]
            part[:] = rng.random(part.shape, np.float32) * 2.0 - 1.0
        array.flush()
    labels = open_memmap(folder / "labels.npy", "w+", np.int8, (rows,))
    labels[:] = rng.integers(-1, 2, rows)
    labels.flush()


def peak() -> float:
    """Return the largest resident set so far, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    """Write, open, learn, report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--width", type=int, default=50)
    parser.add_argument("--gradient-steps", type=int, default=2000)
    parser.add_argument("--folder", type=Path, default=Path("runs/offline-memory"))
    args = parser.parse_args()
    shutil.rmtree(args.folder, ignore_errors=True)
    child = multiprocessing.get_context("spawn").Process(
        target=write, args=(args.folder, args.rows, args.width)
    )
    child.start()
    child.join()
    size = sum(path.stat().st_size for path in args.folder.iterdir()) / 2**30
    before, start = peak(), time.perf_counter()
    columns = {path.stem: np.load(path, mmap_mode="r") for path in args.folder.glob("*.npy")}
    ids = np.arange(args.rows) // 1000
    data = LabelledDataset(**columns, episode_ids=ids)
    opened = time.perf_counter() - start
    model = PMPO.from_spaces("MlpPolicy", data.observation_space, data.action_space, seed=0,
                             device="cpu", batch_size=256)  # fmt: skip
    start = time.perf_counter()
    model.learn_offline(data, args.gradient_steps, log_interval=None)
    found = {
        "rows": args.rows,
        "floats an observation": args.width,
        "GiB on disk": round(size, 2),
        "GiB resident after the imports": round(before, 2),
        "GiB resident at most": round(peak(), 2),
        "seconds to open and check": round(opened, 1),
        "gradient steps a second": round(args.gradient_steps / (time.perf_counter() - start), 1),
    }
    print(json.dumps(found, indent=1))
    RESULT.write_text(json.dumps(found | provenance(), indent=1) + "\n")
    shutil.rmtree(args.folder)


if __name__ == "__main__":
    main()
