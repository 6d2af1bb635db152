"""Fit d3rlpy's BC or CRR to a log: a program of an environment of its own.

d3rlpy 2.8 asks for gymnasium 1.0.0, which this project cannot. So this file imports nothing of the
project; ``benchmarks.labelled.d3rlpy_rows`` starts it and evaluates the policy that it writes.
"""

from __future__ import annotations

import sys

import d3rlpy
import numpy as np
import torch as th


def main(log: str, algorithm: str, seed: str, steps: str, policy: str) -> None:
    """Fit, and write the policy as TorchScript.

    :param log: an ``.npz`` of observations, actions, rewards, timeouts.
    :param algorithm: ``BC`` or ``CRR``, at d3rlpy's defaults, with standardised observations.
    :param seed: of everything.
    :param steps: gradient steps.
    :param policy: path of what is written.
    """
    th.set_num_threads(1)
    d3rlpy.seed(int(seed))
    columns = np.load(log)
    data = d3rlpy.dataset.MDPDataset(
        columns["observations"].astype(np.float32),
        columns["actions"].astype(np.float32),
        columns["rewards"].astype(np.float32),
        np.zeros(len(columns["rewards"])),
        columns["timeouts"].astype(np.float32),
    )
    scaler = d3rlpy.preprocessing.StandardObservationScaler()
    config = getattr(d3rlpy.algos, f"{algorithm}Config")(observation_scaler=scaler)
    model = config.create(device=False)
    model.fit(
        data,
        n_steps=int(steps),
        n_steps_per_epoch=int(steps),
        show_progress=False,
        logger_adapter=d3rlpy.logging.NoopAdapterFactory(),
    )
    model.save_policy(policy)


if __name__ == "__main__":
    main(*sys.argv[1:])
