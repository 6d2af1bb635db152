"""Train PMPO from the command line: evaluate, log, save, plot, and say where everything is."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv
from tqdm import tqdm

from sb3_pmpo.configs import load_config
from sb3_pmpo.envs import action_repeat_of, make_env
from sb3_pmpo.pmpo import PMPO


@dataclass(frozen=True)
class TrainingPlan:
    """What to train, how long and where to put it; steps count each repeat of an action."""

    env: str
    steps: int
    seed: int
    folder: Path
    policy: str
    env_wrapper: list[dict[str, dict[str, Any]]]
    hyperparameters: dict[str, Any]
    device: str = "cpu"
    evaluations: int = 10
    eval_episodes: int = 5
    progress_bar: bool = True
    action_repeat: int = 1

    @classmethod
    def for_env(
        cls, env: str, *, steps: int | None, seed: int, output: Path, **options: Any
    ) -> TrainingPlan:
        """Fill in what the shipped configuration says of this environment."""
        config = load_config("pmpo", env)
        wrappers = config.pop("env_wrapper", [])
        action_repeat = action_repeat_of(wrappers)
        n_timesteps = int(config.pop("n_timesteps"))
        return cls(
            env=env,
            steps=steps or n_timesteps * action_repeat,
            seed=seed,
            folder=_new_folder(output, f"{env.replace('/', '-')}_seed{seed}"),
            policy=config.pop("policy"),
            env_wrapper=wrappers,
            hyperparameters=config,
            action_repeat=action_repeat,
            **options,
        )

    def make_envs(self) -> VecEnv:
        """Make a monitored environment with the wrappers of the configuration."""
        return make_vec_env(lambda: make_env(self.env, self.env_wrapper), n_envs=1, seed=self.seed)


def _new_folder(output: Path, name: str) -> Path:
    number = 1
    while (output / f"{name}_{number}").exists():
        number += 1
    return output / f"{name}_{number}"


class Progress(BaseCallback):
    """A bar over environment steps with the running mean return of the last episodes."""

    def __init__(self, plan: TrainingPlan) -> None:
        super().__init__()
        self._plan = plan

    def _on_training_start(self) -> None:
        self._bar = tqdm(total=self._plan.steps, unit="step", disable=not self._plan.progress_bar)

    def _on_step(self) -> bool:
        self._bar.update(self._plan.action_repeat * self.training_env.num_envs)
        episodes = self.model.ep_info_buffer
        if episodes and self.n_calls % 50 == 0:
            recent = [episode["r"] for episode in list(episodes)[-5:]]
            self._bar.set_postfix_str(f"return {np.mean(recent):.1f}")
        return True

    def _on_training_end(self) -> None:
        self._bar.close()


class SaveModel(BaseCallback):
    """Save the model in one atomic step: what is on disk is always a whole file."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def save(self) -> None:
        """Write beside the old file, then put it in its place."""
        temporary = self._path.with_name("writing.zip")
        self.model.save(temporary)
        os.replace(temporary, self._path)

    def _on_step(self) -> bool:
        self.save()
        return True


def train(plan: TrainingPlan) -> int:
    """Carry out the plan; whatever stops it, the last model stays usable.

    :return: 0, or 130 if it was interrupted.
    """
    plan.folder.mkdir(parents=True)
    about = {"env": plan.env, "env_wrapper": plan.env_wrapper, "seed": plan.seed}
    (plan.folder / "run.json").write_text(json.dumps(about, indent=2) + "\n")
    model = PMPO(
        plan.policy,
        plan.make_envs(),
        seed=plan.seed,
        device=plan.device,
        tensorboard_log=str(plan.folder / "tensorboard"),
        **plan.hyperparameters,
    )
    decisions = -(-plan.steps // plan.action_repeat)
    saver = SaveModel(plan.folder / "model.zip")
    saver.init_callback(model)
    evaluation = EvalCallback(
        plan.make_envs(),
        callback_after_eval=saver,
        eval_freq=max(1, decisions // plan.evaluations),
        n_eval_episodes=plan.eval_episodes,
        log_path=str(plan.folder),
        best_model_save_path=str(plan.folder),
        verbose=0,
        warn=False,
    )
    print(f"Training PMPO on {plan.env} for {plan.steps} environment steps, seed {plan.seed}.")
    started = time.perf_counter()
    previous = signal.signal(signal.SIGTERM, _interrupt)
    stopped = False
    try:
        model.learn(decisions, CallbackList([Progress(plan), evaluation]), log_interval=1)
    except KeyboardInterrupt:
        stopped = True
    except Exception:
        print(f"Stopped by an error; the model so far is {plan.folder / 'model.zip'}.")
        raise
    finally:
        signal.signal(signal.SIGTERM, previous)
        saver.save()
    _report(plan, model, time.perf_counter() - started, stopped)
    return 130 if stopped else 0


def _interrupt(signum: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _report(plan: TrainingPlan, model: PMPO, seconds: float, stopped: bool) -> None:
    folder = plan.folder
    best = ""
    if (folder / "evaluations.npz").exists():
        results = np.load(folder / "evaluations.npz")
        returns = results["results"].mean(1)
        plot_learning_curve(
            folder / "learning_curve.png",
            results["timesteps"] * plan.action_repeat,
            results["results"],
            title=f"PMPO on {plan.env}, seed {plan.seed}",
        )
        best = (
            f" The last evaluation's mean return is {returns[-1]:.1f}, the best "
            f"{returns.max():.1f}; the best model is {folder / 'best_model.zip'} and the curve "
            f"{folder / 'learning_curve.png'}."
        )
    verb = "Stopped" if stopped else "Finished"
    steps = model.num_timesteps * plan.action_repeat
    print(
        f"{verb} after {steps} environment steps in {seconds / 60:.1f} minutes. The final "
        f"model is {folder / 'model.zip'}.{best} See the training logs with `tensorboard --logdir "
        f"{folder / 'tensorboard'}`. Watch the policy in a window with `python -m sb3_pmpo enjoy "
        f"{folder} --render`, or record it without a screen with `MUJOCO_GL=egl python -m "
        f"sb3_pmpo enjoy {folder} --video` (which needs the extra `[video]`)."
    )


def plot_learning_curve(path: Path, steps: np.ndarray, returns: np.ndarray, *, title: str) -> None:
    """Draw the mean return of each evaluation, with the range over its episodes.

    :param path: the picture.
    :param steps: ``[E]`` environment steps.
    :param returns: ``[E, episodes]``.
    :param title: what is above it.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(steps, returns.mean(1), marker="o", markersize=4, label="mean of the episodes")
    axes.fill_between(
        steps, returns.min(1), returns.max(1), alpha=0.2, label="lowest to highest episode"
    )
    axes.set(xlabel="environment steps", ylabel="return of an evaluation", title=title)
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=120)
