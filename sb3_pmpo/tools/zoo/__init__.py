"""PMPO, MPO and DPO in the RL Zoo: ``import sb3_pmpo.tools.zoo; sb3_pmpo.tools.zoo.register()``.

Importing the RL Zoo changes Gymnasium's ``TimeLimit``; so this package is imported by nothing but
the command line and users.
"""

from __future__ import annotations

import rl_zoo3
import rl_zoo3.enjoy
import rl_zoo3.exp_manager
import rl_zoo3.train
import rl_zoo3.utils
from rl_zoo3.exp_manager import ExperimentManager
from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER

import sb3_pmpo.envs  # noqa: F401  # registers the Control Suite
from sb3_pmpo.tools.plain_yaml import read_plainly
from sb3_pmpo.tools.settings import ALGORITHMS
from sb3_pmpo.tools.zoo.found import find_whole
from sb3_pmpo.tools.zoo.manager import Manager
from sb3_pmpo.tools.zoo.spaces import Sampler, convert
from sb3_pmpo.tools.zoo.writing import write_whole

__all__ = ["ALGORITHMS", "register"]


def register() -> None:
    """Make the family known to the RL Zoo, beside its own algorithms; any number of times.

    ``rl_zoo3.train`` and its like take ``--algo pmpo`` afterwards, in this process, and ``train``
    finds the settings that ship with this package: it runs :class:`Manager`. A script that makes an
    ``ExperimentManager`` by itself makes a ``Manager`` instead, or hands over
    ``config=str(sb3_pmpo.tools.settings.config_path())``.
    """
    rl_zoo3.ALGOS.update(ALGORITHMS)
    # Whoever made a run's folder or a configuration runs nothing here.
    read_plainly(rl_zoo3.utils, rl_zoo3.enjoy, rl_zoo3.exp_manager)
    find_whole(rl_zoo3.enjoy)
    write_whole()
    HYPERPARAMS_SAMPLER.update({name: Sampler(name) for name in ALGORITHMS})
    HYPERPARAMS_CONVERTER.update(dict.fromkeys(ALGORITHMS, convert))
    program = vars(rl_zoo3.train)
    if program["ExperimentManager"] is ExperimentManager:  # and no other that a user put there
        program["ExperimentManager"] = Manager
