"""What the policies of figure 3 are like after 5000 environment steps of walker-walk.

python -W ignore -m benchmarks.trial_figure3_policies PMPO-R-beta1
"""

import sys

import torch as th

from benchmarks import models
from benchmarks.suites import SUITES
from sb3_pmpo.envs import make_dmc_env

th.set_num_threads(1)
name = sys.argv[1]
env = make_dmc_env("walker-walk", action_repeat=2)
model = models.make_model(name, "walker-walk", env, 0, SUITES["figure3"].algorithms[name])
model.learn(2500)
with th.no_grad():
    policy = model.actor.distribution(model.replay_buffer.sample(512).observations)
print(name, f"std {policy.std.mean():.2f}", f"at the edge {(policy.mean.abs() > 0.98).float().mean():.2f}",
      f"KL {model.logger.name_to_value['train/kl_joint']:.2f}")
