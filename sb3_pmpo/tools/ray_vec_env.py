"""A VecEnv whose environments run as Ray actors: on this machine's cores or on a whole cluster."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.env_util import is_wrapped
from stable_baselines3.common.vec_env.base_vec_env import (
    VecEnv,
    VecEnvIndices,
    VecEnvObs,
    VecEnvStepReturn,
)
from stable_baselines3.common.vec_env.patch_gym import _patch_env
from stable_baselines3.common.vec_env.subproc_vec_env import _stack_obs

try:
    import ray
    from ray import cloudpickle
    from ray import exceptions as ray_errors
except ImportError as error:
    raise ImportError(
        "RayVecEnv and sweeps on a cluster need Ray: pip install 'sb3_pmpo[ray]'"
    ) from error


#: What Ray raises where an answer cannot come any more: by what the worker died, it depends.
_DEATHS = (
    ray_errors.RayActorError,
    ray_errors.WorkerCrashedError,
    ray_errors.NodeDiedError,
    ray_errors.OutOfMemoryError,
    ray_errors.ObjectLostError,
)


class WorkerDiedError(RuntimeError):
    """A worker's process or node is gone, and the state of its environment with it."""


def connect(address: str | None = None) -> None:
    """Connect to Ray, unless this process is connected already.

    A Ray that starts here gives its workers the priority of this process, unless the variable
    ``RAY_worker_niceness`` sets another: Ray's own choice, niceness 15, starves them beside a
    learner that keeps the cores busy.

    :param address: a cluster's ``host:port``, ``"auto"`` for one that must be running here,
        ``"local"`` for a new one on this machine; None for what ``RAY_ADDRESS`` says or one that
        runs here, else a new one.
    """
    if not ray.is_initialized():
        os.environ.setdefault("RAY_worker_niceness", "0")
        ray.init(address=address, include_dashboard=False)


class _Worker:
    """One environment, in a process of its own, with the commands of SB3's SubprocVecEnv.

    What comes and goes is pickled here: the arrays that Ray itself hands out are read-only, and
    environments and wrappers that write into them work with a SubprocVecEnv.
    """

    _env: gym.Env

    def call(self, request: bytes) -> bytes:
        command, arguments = cloudpickle.loads(request)
        return cloudpickle.dumps(getattr(self, command)(*arguments))

    def make(self, env_fn: Callable[[], gym.Env]) -> tuple[gym.Space, gym.Space]:
        # Not in the constructor: Ray reports errors there as the death of the actor.
        self._env = _patch_env(env_fn())
        return self._env.observation_space, self._env.action_space

    def step(self, action: Any) -> tuple[Any, Any, bool, dict[str, Any], dict[str, Any] | None]:
        observation, reward, terminated, truncated, info = self._env.step(action)
        done = terminated or truncated
        info["TimeLimit.truncated"] = truncated and not terminated
        reset_info = None
        if done:
            info["terminal_observation"] = observation
            observation, reset_info = self._env.reset()
        return observation, reward, done, info, reset_info

    def reset(self, seed: int | None, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return self._env.reset(seed=seed, **({"options": options} if options else {}))

    def env_method(self, name: str, arguments: tuple, keywords: dict[str, Any]) -> Any:
        return self._env.get_wrapper_attr(name)(*arguments, **keywords)

    def get_attr(self, name: str) -> Any:
        return self._env.get_wrapper_attr(name)

    def has_attr(self, name: str) -> bool:
        try:
            self._env.get_wrapper_attr(name)
        except AttributeError:
            return False
        return True

    def set_attr(self, name: str, value: Any) -> None:
        setattr(self._env, name, value)

    def is_wrapped(self, wrapper_class: type[gym.Wrapper]) -> bool:
        return is_wrapped(self._env, wrapper_class)

    def render(self) -> Any:
        return self._env.render()

    def close(self) -> None:
        self._env.close()


class RayVecEnv(VecEnv):
    """Run environments as Ray actors, with the semantics of SB3's ``SubprocVecEnv``.

    For ``make_vec_env(..., vec_env_cls=RayVecEnv, vec_env_kwargs={...})`` and the Zoo's
    ``ExperimentManager.default_vec_env_cls``. Each step is one exchange of messages (about a
    millisecond on one machine), so it pays for environments that take longer than that, or more
    of them than one machine has cores. On a cluster, this package and the environments must be
    installed on every node.

    With ``restart=True`` a worker that dies is replaced. Its lost step has reward 0, is truncated
    (``done``, ``info["TimeLimit.truncated"]``), ends in the last observation that was seen
    (``info["terminal_observation"]``), has ``info["worker_restarted"]`` and no ``"episode"``. The
    new environment gets what ``set_attr`` set, and a seed of its own if the old one had one;
    what ``env_method`` did is lost, and a ``Monitor`` that writes to a file begins it anew (give
    it ``override_existing=False``).

    :param env_fns: one function for each environment, each of which makes it.
    :param address: where Ray runs, see :func:`connect`; of no effect if it is initialised.
    :param restart: replace workers that die, instead of raising ``WorkerDiedError``.
    :param actor_options: of Ray's ``.options(...)``, e.g. ``{"num_cpus": 1}`` to reserve a core
        for each worker, and wait until there are that many; by default none is reserved, so that
        there may be more workers than cores, and they are spread over the nodes.
    :raises ValueError: without any environment.
    :raises WorkerDiedError: from any method, where a worker is dead and is not replaced.
    """

    #: How many workers were replaced so far.
    n_restarts: int

    def __init__(
        self,
        env_fns: Sequence[Callable[[], gym.Env]],
        *,
        address: str | None = None,
        restart: bool = False,
        actor_options: Mapping[str, Any] | None = None,
    ) -> None:
        if not env_fns:
            raise ValueError("env_fns must have at least one function that makes an environment")
        connect(address)
        self.num_envs = len(env_fns)
        self.waiting = False
        self.closed = False
        self.restart = restart
        self.n_restarts = 0
        defaults = {"num_cpus": 0, "scheduling_strategy": "SPREAD"}
        self._actor_class = ray.remote(_Worker).options(**defaults | dict(actor_options or {}))
        self._env_fns = list(env_fns)
        self._steps: list[Any] = []  # what step_wait waits for
        self._last_observations: list[Any] = [None] * len(env_fns)
        self._last_seeds: list[int | None] = [None] * len(env_fns)
        self._attributes: list[dict[str, Any]] = [{} for _ in env_fns]
        # Of workers that were replaced: the first observation and reset_info of the new episode.
        self._replaced: dict[int, tuple[Any, dict[str, Any]]] = {}
        self._workers = [self._actor_class.remote() for _ in env_fns]
        made = [self._send(index, "make", env_fn) for index, env_fn in enumerate(env_fns)]
        spaces = [self._receive(index, reference) for index, reference in enumerate(made)]
        super().__init__(len(env_fns), *spaces[0])

    # ------------------------------------------------------------------ messages

    def _send(self, index: int, command: str, *arguments: Any) -> Any:
        if self.closed:
            raise RuntimeError("this RayVecEnv is closed; make another one")
        return self._workers[index].call.remote(cloudpickle.dumps((command, arguments)))

    def _receive(self, index: int, reference: Any) -> Any:
        try:
            return cloudpickle.loads(ray.get(reference))
        except (
            ray_errors.RayTaskError
        ) as error:  # is an instance of the environment's own error, too
            error.add_note(f"It was raised in worker {index} of {self.num_envs} of RayVecEnv.")
            raise
        except _DEATHS as error:
            raise WorkerDiedError(
                f"Worker {index} of RayVecEnv (counted from 0, of {self.num_envs}) died, and its"
                " environment with it. To replace workers that die and go on, give RayVecEnv "
                "restart=True (make_vec_env: vec_env_kwargs={'restart': True}). What Ray says: "
                f"{error}"
            ) from error

    def _ask(self, indices: VecEnvIndices, command: str, *arguments: Any) -> list[Any]:
        """Give a command to some workers at once and wait for their answers."""
        targets = list(self._get_indices(indices))
        references = [self._send(index, command, *arguments) for index in targets]
        return [
            self._answer(index, reference, command, *arguments)
            for index, reference in zip(targets, references, strict=True)
        ]

    def _answer(self, index: int, reference: Any, command: str, *arguments: Any) -> Any:
        try:
            return self._receive(index, reference)
        except WorkerDiedError as error:
            self._replace(index, error)
            return self._receive(index, self._send(index, command, *arguments))

    def _replace(self, index: int, error: WorkerDiedError) -> None:
        if not self.restart:
            raise error
        self.n_restarts += 1
        warnings.warn(
            f"Worker {index} of RayVecEnv died and is replaced; its episode is reported as "
            f"truncated. Replaced so far: {self.n_restarts}. What Ray says: {error.__cause__}",
            RuntimeWarning,
            stacklevel=2,
        )
        # It may be alive behind a broken connection, with a lock or a file that the new one needs.
        ray.kill(self._workers[index])
        self._workers[index] = self._actor_class.remote()
        self._receive(index, self._send(index, "make", self._env_fns[index]))
        for name, value in self._attributes[index].items():
            self._receive(index, self._send(index, "set_attr", name, value))
        seed = self._last_seeds[index]
        if seed is not None:  # the same one would bring the same episodes again
            seed = self._last_seeds[index] = seed + self.num_envs
        self._replaced[index] = self._receive(index, self._send(index, "reset", seed, {}))

    # ------------------------------------------------------------------ SB3's interface

    def step_async(self, actions: np.ndarray) -> None:
        """Send each environment its action."""
        self.actions = actions  # by which one sees that somebody has stepped
        self._steps = [self._send(index, "step", action) for index, action in enumerate(actions)]
        self.waiting = True

    def step_wait(self) -> VecEnvStepReturn:
        """Wait for all the environments' steps."""
        results = [self._step_result(index, step) for index, step in enumerate(self._steps)]
        self.waiting = False
        observations, rewards, dones, infos, reset_infos = zip(*results, strict=True)
        self._last_observations = list(observations)
        for index, reset_info in enumerate(reset_infos):
            if reset_info is not None:
                self.reset_infos[index] = reset_info
        stacked = _stack_obs(observations, self.observation_space)
        return stacked, np.stack(rewards), np.stack(dones), list(infos)

    def _step_result(self, index: int, step: Any) -> tuple[Any, float, bool, dict, dict | None]:
        if index not in self._replaced:
            try:
                return self._receive(index, step)
            except WorkerDiedError as error:
                self._replace(index, error)
        observation, reset_info = self._replaced.pop(index)
        info = {
            "TimeLimit.truncated": True,
            "terminal_observation": self._last_observations[index],
            "worker_restarted": True,
        }
        return observation, 0.0, True, info, reset_info

    def reset(self) -> VecEnvObs:
        """Reset all the environments, with the seeds and options set before."""
        arguments = list(zip(self._seeds, self._options, strict=True))
        sent = [self._send(index, "reset", *each) for index, each in enumerate(arguments)]
        results = [
            self._answer(index, reference, "reset", *arguments[index])
            for index, reference in enumerate(sent)
        ]
        self._replaced.clear()
        for index, (seed, _) in enumerate(arguments):
            self._last_seeds[index] = self._last_seeds[index] if seed is None else seed
        observations, reset_infos = zip(*results, strict=True)
        self._last_observations, self.reset_infos = list(observations), list(reset_infos)
        self._reset_seeds()
        self._reset_options()
        return _stack_obs(observations, self.observation_space)

    def close(self) -> None:
        """Close the environments and end the workers; Ray itself is left running."""
        if self.closed:
            return
        try:
            if ray.is_initialized():  # else its shutdown has ended them
                self._close_workers()
        finally:
            self.waiting = False
            self.closed = True

    def _close_workers(self) -> None:
        references = [self._send(index, "close") for index in range(self.num_envs)]
        try:
            for index, reference in enumerate(references):
                # One that died has nothing to close.
                with contextlib.suppress(WorkerDiedError):
                    self._receive(index, reference)
        finally:
            for worker in self._workers:
                ray.kill(worker)

    def get_images(self) -> Sequence[np.ndarray | None]:
        """Render each environment."""
        if self.render_mode != "rgb_array":
            warnings.warn(
                f"The render mode is {self.render_mode}, but images need `rgb_array`.",
                stacklevel=2,
            )
            return [None] * self.num_envs
        return self._ask(None, "render")

    def has_attr(self, attr_name: str) -> bool:
        """Say whether every environment has the attribute."""
        return all(self._ask(None, "has_attr", attr_name))

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Get an attribute of each environment, or of some."""
        return self._ask(indices, "get_attr", attr_name)

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of each environment, or of some; also of those that replace them."""
        targets = list(self._get_indices(indices))
        self._ask(targets, "set_attr", attr_name, value)
        for index in targets:
            self._attributes[index][attr_name] = value

    def env_method(
        self,
        method_name: str,
        *method_args: Any,
        indices: VecEnvIndices = None,
        **method_kwargs: Any,
    ) -> list[Any]:
        """Call a method of each environment, or of some."""
        return self._ask(indices, "env_method", method_name, method_args, method_kwargs)

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None
    ) -> list[bool]:
        """Say of each environment, or some, whether it has a wrapper of this class."""
        return self._ask(indices, "is_wrapped", wrapper_class)
