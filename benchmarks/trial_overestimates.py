"""What quadruped-walk's seed 1 expects and what follows, and how fast critics of other pasts learn it.

python -m benchmarks.trial_overestimates CHECKPOINT, of PMPO with the mean of the critics in the TD
target. The policy and the reference are held; q is the critics' value of the mean action.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import torch as th
from stable_baselines3.common.logger import configure

from benchmarks import checkpoints
from benchmarks.models import algorithm_class, make_model, make_task

TASK = "quadruped-walk"


def load(checkpoint, env):
    model = algorithm_class("PMPO").load(
        checkpoint / "model.zip", env=env, device="cpu", seed=5, custom_objects={"pessimism": 0.0}
    )
    checkpoints.load_buffer(checkpoint / "buffer.pkl", model.replay_buffer)
    model.set_logger(configure(None, []))
    return model


def outcomes(model, env):
    """Play three episodes; return states of their first half and the discounted return of each."""
    states, returns = [], []
    for seed in range(3):
        observation, _ = env.reset(seed=seed)
        seen, rewards, over = [], [], False
        while not over:
            with th.no_grad():
                policy = model.actor.distribution(th.as_tensor(observation[None]))
                action = policy.mean + policy.std * th.randn_like(policy.std)
            action = model.policy.unscale_action(np.clip(action[0].numpy(), -1, 1))
            seen.append(observation)
            observation, reward, terminated, truncated, _ = env.step(action)
            rewards.append(reward)
            over = terminated or truncated
        total, after = 0.0, []
        for reward in rewards[::-1]:
            total = reward + model.gamma * total
            after.append(total)
        states += seen[:250:5]
        returns += after[::-1][:250:5]
    return th.as_tensor(np.array(states)), np.array(returns)


def hold_norms(model):
    """Scale each hidden layer to its norm at the start: the layer norm after it undoes the scale."""
    with th.no_grad():
        for layer in model.critic.ensemble.hidden:
            start = math.sqrt(layer.weight[0].numel() / 3 / layer.weight.shape[1])
            scale = start / layer.weight.norm(dim=(1, 2), keepdim=True)
            layer.weight.mul_(scale)
            layer.bias.mul_(scale)


def renew(model, env):
    fresh = make_model("PMPO", TASK, env, 9, {}).critic.ensemble.state_dict()
    model.critic.ensemble.load_state_dict(fresh)
    model.critic_target.ensemble.load_state_dict(fresh)
    model.critic.optimizer.state.clear()


def main():
    th.set_num_threads(1)
    env = make_task(TASK, 2)
    for past in ("kept", "kept, norms of the start", "fresh"):
        model = load(Path(sys.argv[1]), env)
        states, returns = outcomes(model, env)
        if past == "fresh":
            renew(model, env)
        elif past != "kept":
            hold_norms(model)
        for updates in range(0, 20_001, 2000):
            with th.no_grad():
                mean = model.actor.distribution(states).mean[None]
                q = model.critic.q_values(states, mean).mean(0)[0].numpy()
            print(past, updates, q.mean().round(1), returns.mean().round(1),
                  np.corrcoef(q, returns)[0, 1].round(2), flush=True)  # fmt: skip
            model.policy.set_training_mode(True)
            model._set_learning_rates()
            for batch, target in model._batches(2000, 128):
                model._critic_step(batch, target)
                model._critic_lag.move(0.03)


if __name__ == "__main__":
    main()
