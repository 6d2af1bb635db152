"""Environments: the DeepMind Control Suite through shimmy, ready for SB3.

Importing this module registers the suite's ids, ``dm_control/<domain>-<task>-v0``, if the extra
``[dmc]`` is installed.
"""

from __future__ import annotations

import difflib
import importlib
import os
import warnings
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np


def _register_suite() -> str | None:
    """Let shimmy register the ids; return what the machine lacks, or None.

    dm_control loads the library that draws as soon as it is imported, and fails in many ways
    without it. Who uses other environments is not to notice.
    """
    try:
        with warnings.catch_warnings():
            # GLFW's, that there is no screen: dm_control then looks for EGL.
            warnings.filterwarnings("ignore", r"\(\d+\) b'(X11|Wayland|Cocoa)|.*DISPLAY")
            import shimmy  # noqa: F401
    except ImportError:  # the ids are unknown then
        return None
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


_LACKING = _register_suite()

#: The Zoo's notation for wrappers: ``[{"package.module.name": {arguments}}, ...]``.
Wrappers = Sequence[dict[str, dict[str, Any]]]


class ActionRepeat(gym.Wrapper):
    """Apply each action several times and sum the rewards; stop early at an episode's end.

    A frame is rendered once a decision, so ``render_fps`` falls by the same factor.

    :param env: the environment.
    :param n_repeats: how often, >= 1.
    """

    def __init__(self, env: gym.Env, n_repeats: int) -> None:
        super().__init__(env)
        if n_repeats < 1:
            raise ValueError(f"n_repeats must be at least 1, got {n_repeats}")
        self.n_repeats = n_repeats
        fps = env.metadata.get("render_fps")
        if fps is not None:
            self.metadata = {**env.metadata, "render_fps": fps / n_repeats}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Step ``n_repeats`` times with one action."""
        total = 0.0
        for _ in range(self.n_repeats):
            observation, reward, terminated, truncated, info = self.env.step(action)
            total += float(reward)
            if terminated or truncated:
                break
        return observation, total, terminated, truncated, info


class ControlSuite(gym.ObservationWrapper):
    """A Control Suite environment with flat float32 observations and checked actions.

    As shimmy makes it, its observations are a Dict of float64 with 0-d entries, which no SB3
    policy takes; its ``render_fps`` is wrong, and one dictionary of metadata serves all tasks.

    :param env: as ``gymnasium.make("dm_control/...")`` returns it.
    :raises ValueError: at an LQR task, at ``quadruped-escape`` without OpenGL, and at an action
        that is not finite, before MuJoCo sees it.
    """

    def __init__(self, env: gym.Env) -> None:
        _check_supported(env)
        flat = gym.wrappers.FlattenObservation(env)
        super().__init__(flat)
        bounds = flat.observation_space
        assert isinstance(bounds, gym.spaces.Box)  # by construction: it was just flattened
        self.observation_space = gym.spaces.Box(
            bounds.low.astype(np.float32), bounds.high.astype(np.float32)
        )
        box = env.action_space
        assert isinstance(box, gym.spaces.Box)  # every task's is
        self.action_space = gym.spaces.Box(box.low.astype(np.float32), box.high.astype(np.float32))
        fps = 1.0 / env.unwrapped.control_timestep()  # type: ignore[attr-defined]  # dm_control's
        self.metadata = {**env.metadata, "render_fps": fps}

    def observation(self, observation: np.ndarray) -> np.ndarray:
        """Convert to float32."""
        return observation.astype(np.float32)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Step with a finite action."""
        if not np.isfinite(action).all():
            raise ValueError(
                f"action must be finite, got {action}: the policy has most likely diverged; lower "
                "learning_rate, and look at train/actor_grad_norm in the logs"
            )
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, float(reward), terminated, truncated, info


def _check_supported(env: gym.Env) -> None:
    env_id = "" if env.spec is None else env.spec.id
    if env_id.startswith("dm_control/lqr-"):
        raise ValueError(
            f"{env_id} is not supported: its actions reach +-1e10, it has no time limit, and its "
            "model is drawn at random when it is made, so that no two instances are one task. To "
            "use it, make it with task_kwargs={'random': seed} and add wrappers of your own: "
            "gymnasium's TimeLimit and FlattenObservation, and one that scales the actions"
        )
    if env_id.startswith("dm_control/quadruped-escape-"):
        try:
            env.unwrapped.physics.contexts  # type: ignore[attr-defined]  # dm_control's  # noqa: B018
        except RuntimeError as error:
            raise ValueError(
                f"{env_id} needs OpenGL, for its terrain is drawn anew at each reset: set "
                "MUJOCO_GL=egl (or osmesa, without a graphics card) instead of disabled"
            ) from error


def control_suite(env: gym.Env, action_repeat: int = 1) -> gym.Env:
    """Make a Control Suite environment fit for SB3; usable as a Zoo ``env_wrapper``.

    :param env: as ``gymnasium.make("dm_control/...")`` returns it.
    :param action_repeat: how often each action is applied.
    :return: the environment with flat float32 observations and the right ``render_fps``.
    :raises ValueError: see :class:`ControlSuite`.
    """
    env = ControlSuite(env)
    return ActionRepeat(env, action_repeat) if action_repeat > 1 else env


def make_dmc_env(task: str, *, action_repeat: int = 1, **kwargs: Any) -> gym.Env:
    """Make a Control Suite task ready for SB3: flat float32 observations, finite actions.

    Episodes last 1000 environment steps and end by truncation. ``reset(seed=...)`` makes two
    instances equal bit for bit. For a vectorised environment, also in other processes::

        make_vec_env(make_dmc_env, n_envs=4, env_kwargs={"task": "walker-walk"},
                     vec_env_cls=SubprocVecEnv)

    :param task: ``"<domain>-<task>"``, such as ``"walker-walk"``.
    :param action_repeat: how often each action is applied, >= 1.
    :param kwargs: passed on to shimmy: ``render_mode`` (``"rgb_array"``, ``"human"``, ...),
        ``render_kwargs`` (``height``, ``width``, ``camera_id``), ``task_kwargs``,
        ``environment_kwargs``. For pixels as observations, wrap the result in
        ``gymnasium.wrappers.AddRenderObservation`` with ``render_mode="rgb_array"``.
    :raises ValueError: if the task is unknown or unsupported (see :class:`ControlSuite`).
    """
    if task.startswith("dm_control/"):
        raise ValueError(
            f"task must be '<domain>-<task>', such as 'walker-walk', got {task!r}: leave out "
            "'dm_control/' and the version, or give the id to make_env"
        )
    wrappers = [{f"{__name__}.control_suite": {"action_repeat": action_repeat}}]
    return make_env(f"dm_control/{task}-v0", wrappers, **kwargs)


def make_env(env_id: str, wrappers: Wrappers = (), **kwargs: Any) -> gym.Env:
    """Make an environment by its id and wrap it, in this process or a SubprocVecEnv's child.

    :param env_id: a Gymnasium id.
    :param wrappers: applied in order.
    :param kwargs: passed on to ``gymnasium.make``.
    :raises ValueError: if a Control Suite id is unknown.
    """
    if env_id.startswith("dm_control/"):
        check_registered(env_id)
    return wrap(gym.make(env_id, **kwargs), wrappers)


def wrap(env: gym.Env, wrappers: Wrappers) -> gym.Env:
    """Wrap an environment.

    :param wrappers: applied in order.
    """
    for entry in as_wrappers(wrappers):
        for path, arguments in entry.items():
            module, _, name = path.rpartition(".")
            env = getattr(importlib.import_module(module), name)(env, **arguments)
    return env


def check_registered(env_id: str) -> None:
    """Check that Gymnasium knows an id.

    :raises ValueError: naming the nearest ids, or the extra that is missing.
    """
    if env_id in gym.registry:
        return
    if env_id.startswith("dm_control/") and _LACKING is not None:
        raise ValueError(
            f"{env_id!r} cannot be made with MUJOCO_GL={os.environ.get('MUJOCO_GL', '')!r}, for "
            f"dm_control fails with {_LACKING}. To see pictures, egl needs the system's libegl1 "
            "(apt install libegl1), osmesa needs libosmesa6; to train, MUJOCO_GL=disabled needs "
            "neither"
        )
    if env_id.startswith("dm_control/") and "dm_control/walker-walk-v0" not in gym.registry:
        raise ValueError(
            f"{env_id!r} is not registered: the DeepMind Control Suite is not installed. "
            "pip install 'sb3_pmpo[dmc]'"
        )
    near = difflib.get_close_matches(env_id, gym.registry, n=3, cutoff=0.4)
    raise ValueError(
        f"no environment is registered as {env_id!r}; the nearest are {', '.join(near) or 'none'}"
    )


def as_wrappers(entries: Any) -> Wrappers:
    """Read the Zoo's notations of wrappers: None, a name, or a list of names and dictionaries."""
    listed = entries if isinstance(entries, list) else [entries] if entries else []
    return [entry if isinstance(entry, dict) else {entry: {}} for entry in listed]


def action_repeat_of(entries: Any) -> int:
    """Return how many environment steps one decision takes under these wrappers of the Zoo's."""
    repeats = 1
    for entry in as_wrappers(entries):
        for path, arguments in entry.items():
            if path == f"{__name__}.control_suite":
                repeats *= arguments.get("action_repeat", 1)
            elif path == f"{__name__}.ActionRepeat":
                repeats *= arguments["n_repeats"]
    return repeats
