"""Short training runs, as a user's logs folder has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import yaml

from sb3_pmpo.tools.zoo.programs import train

WALKER = "dm_control/walker-walk-v0"


def run(logs: Path, env_id: str, algorithm: str = "pmpo", *more: str, **settings: Any) -> Path:
    """Train for a moment, with settings that go before the small ones; return the run's folder."""
    small = {
        "n_timesteps": 30,
        "policy": "MlpPolicy",
        "policy_kwargs": {"net_arch": [8]},
        "learning_starts": 20,
        "batch_size": 8,
    }
    file = logs / "settings.yml"
    logs.mkdir(exist_ok=True)
    file.write_text(yaml.safe_dump({env_id: small | settings}))
    arguments = ["--algo", algorithm, "--env", env_id, "-f", str(logs), "--conf-file", str(file)]
    arguments += ["--seed", "3", "--eval-freq", "-1", "--verbose", "0", *more]
    before = set(logs.glob("*/*"))
    assert train(arguments) == 0
    (folder,) = set(logs.glob("*/*")) - before
    return folder


def run_walker(logs: Path, *more: str, **settings: Any) -> Path:
    """Train on walker-walk with an action repeat of 2 and small frames."""
    wrapper = [{"sb3_pmpo.envs.control_suite": {"action_repeat": 2}}]
    frames = {"render_kwargs": {"height": 48, "width": 64}}
    more = ("--env-kwargs", *(f"{key}:{value}" for key, value in frames.items()), *more)
    return run(logs, WALKER, "pmpo", *more, env_wrapper=wrapper, **settings)


def register_goals() -> str:
    """Register SB3's goal environment, with continuous actions and episodes of five steps."""
    env_id = "Bits-v0"
    if env_id not in gym.registry:
        entry = "stable_baselines3.common.envs:BitFlippingEnv"
        options = {"continuous": True, "n_bits": 3, "max_steps": 5}
        gym.register(env_id, entry_point=entry, kwargs=options)
    return env_id


class Painted(gym.Env[np.ndarray, np.ndarray]):
    """Is drawn as large as its arguments say, without a library."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}  # noqa: RUF012  # as Gymnasium wants it
    observation_space = gym.spaces.Box(-1.0, 1.0, (1,))
    action_space = gym.spaces.Box(-1.0, 1.0, (1,))

    def __init__(self, height: int = 40, width: int = 20, render_mode: str | None = None) -> None:
        self.render_mode, self._size = render_mode, (height, width, 3)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        return np.zeros(1, np.float32), 0.0, False, False, {}

    def render(self) -> np.ndarray:
        return np.zeros(self._size, np.uint8)


def register_painted() -> str:
    """Register it, with episodes of five steps."""
    if "Painted-v0" not in gym.registry:
        gym.register("Painted-v0", entry_point=Painted, max_episode_steps=5)
    return "Painted-v0"
