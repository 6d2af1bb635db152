"""The model card of a published agent: what it scores, how to load it, how to train it again."""

from __future__ import annotations

import json
import platform
import shlex
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from huggingface_hub import EvalResult, ModelCardData
from huggingface_sb3 import ModelName
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from sb3_pmpo.command_line import counted
from sb3_pmpo.envs import Wrappers, action_repeat_of, as_wrappers
from sb3_pmpo.tools.plain_yaml import read
from sb3_pmpo.tools.settings import plain
from sb3_pmpo.tools.zoo.agents import Agent
from sb3_pmpo.tools.zoo.resuming import OFFLINE

#: The settings to train again with, in the published folder, in the Zoo's format.
SETTINGS_FILE = "hyperparams.yml"

_PACKAGES = (
    *("sb3_pmpo", "stable_baselines3", "sb3_contrib", "rl_zoo3", "torch", "numpy", "gymnasium"),
    *("mujoco", "dm_control", "shimmy"),
)


class Scores(NamedTuple):
    """What an evaluation found; the names are those of ``results.json``."""

    mean_reward: float
    std_reward: float
    n_eval_episodes: int
    is_deterministic: bool
    seed: int

    def __str__(self) -> str:
        return f"{self.mean_reward:.2f} +/- {self.std_reward:.2f}"


def versions() -> dict[str, str]:
    """Return the versions of Python and of what an agent depends on, where it is installed."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def card_data(agent: Agent, scores: Scores) -> ModelCardData:
    """Return what the Hub reads of a model card, the scores among it."""
    env_id = agent.env_name.gym_id
    return ModelCardData(
        library_name="stable-baselines3",
        pipeline_tag="reinforcement-learning",
        tags=[env_id, "deep-reinforcement-learning", "stable-baselines3", "sb3_pmpo"],
        model_name=agent.algorithm_class.__name__,
        eval_results=[
            EvalResult(
                task_type="reinforcement-learning",
                task_name="reinforcement-learning",
                dataset_type=env_id,
                dataset_name=env_id,
                metric_type="mean_reward",
                metric_name="mean_reward",
                metric_value=str(scores),
            )
        ],
    )


def training_settings(agent: Agent) -> str | None:
    """Return the settings in the Zoo's format, for ``--conf-file``; None if YAML cannot hold them.

    :return: with the environment's arguments and the budget that ``train`` was called with.
    """
    is_offline = bool(agent.arguments.get(OFFLINE))  # whose length is in its command
    left_out = {"normalize_kwargs"} | ({"n_timesteps"} if is_offline else set())
    settings = {key: value for key, value in agent.settings.items() if key not in left_out}
    if not settings.get("normalize"):
        settings.pop("normalize", None)
    if agent.arguments.get("n_timesteps", -1) > 0 and not is_offline:
        settings["n_timesteps"] = agent.arguments["n_timesteps"]
    if agent.env_kwargs:
        settings["env_kwargs"] = agent.env_kwargs
    try:
        return yaml.safe_dump({agent.env_name.gym_id: plain(settings)}, sort_keys=False)
    except yaml.representer.RepresenterError:
        return None


def make_card(agent: Agent, scores: Scores, repo_id: str, *, steps: int, video: bool) -> str:
    """Write the model card.

    :param repo_id: where the agent is published, ``"organization/name"``.
    :param steps: decisions that it was trained for, of all parts of a resumed run; gradient steps
        of a run of ``sb3-pmpo offline``.
    :param video: whether there is a ``replay.mp4``.
    :return: the text of ``README.md``, with its metadata.
    """
    repeat = action_repeat_of(agent.settings.get("env_wrapper"))
    return _CARD.format(
        metadata=card_data(agent, scores).to_yaml(),
        name=agent.algorithm_class.__name__,
        env_id=agent.env_name.gym_id,
        video=_VIDEO if video else "",
        scores=scores,
        how=f"{counted(scores.n_eval_episodes, 'episode')}, seed {scores.seed}, "
        + ("without" if scores.is_deterministic else "with"),
        model=agent.model_path.name,
        trained=_trained(agent, steps, repeat),
        repeated=f" Each decision is applied {repeat} times." if repeat > 1 else "",
        snippet=_snippet(agent, scores, repo_id),
        training=_training(agent, training_settings(agent), steps),
        versions="\n".join(f"| {key} | {value} |" for key, value in versions().items()),
    )


_CARD = """---
{metadata}
---

# {name} on {env_id}

A {name} agent of sb3_pmpo, an add-on of
[Stable-Baselines3](https://github.com/DLR-RM/stable-baselines3), trained with the
[RL Zoo](https://github.com/DLR-RM/rl-baselines3-zoo).
{video}
## Score

**{scores}** (mean and standard deviation of the return over {how} action noise;
`{model}` of the run, after {trained}). Returns are the environment's own, not
normalised.{repeated}

## Use

```bash
pip install -e 'PATH[train]'  # for PATH put your clone of sb3_pmpo
```

A model holds data. One that also holds a pickle is loaded with `trust=True` alone: it can run any
code, so trust who made it.

```python
{snippet}```

## Train

{training}
## Versions

The score was measured with

| package | version |
|---|---|
{versions}
"""

_VIDEO = """
<video src="replay.mp4" controls autoplay loop muted></video>

[replay.mp4](replay.mp4)
"""


def _trained(agent: Agent, steps: int, repeat: int) -> str:
    """Say how long an agent was trained, and what it began with."""
    told = agent.arguments
    if told.get(OFFLINE):
        length = f"{steps:,} gradient steps on data"
    else:
        length = f"{steps:,} decisions, {steps * repeat:,} environment steps"
    if told.get("from_pretrained"):
        length += f", begun with the policy {told['from_pretrained']}"
    return length


def _training(agent: Agent, settings: str | None, steps: int) -> str:
    if settings is None:
        return (
            "The settings hold Python objects, which no YAML file holds as text; `config.yml` has "
            f"them pickled:\n\n```\n{dict(agent.settings)}\n```\n"
        )
    if agent.arguments.get(OFFLINE):
        command = f"sb3-pmpo offline {shlex.join(agent.arguments[OFFLINE])}"
        return (
            f"```bash\n{command}\n```\n\nThe data is not in this repository. Of the settings, what "
            f"is no default:\n\n```yaml\n{settings}```\n"
        )
    parts = _parts(agent, steps)
    commands = [_command(agent, part) for part in parts]
    if _went_on_in_place(agent.arguments, agent.folder):  # as one run of the whole length ends
        commands[0] += f" -n {steps}"
    elif len(parts) > 1:
        env, again = agent.env_name, f"again/{agent.algorithm}"
        for number, part in enumerate(parts, start=1):
            before = f" -i {again}/{env}_{number - 1}/{env}.zip" if number > 1 else ""
            commands[number - 1] += f" -n {part['n_timesteps']} -f again{before}"
    command = "\n".join(commands)
    lost = parts[0].get("trained_agent")
    resumed = f"\nThe first of these went on from `{lost}`, which was not there.\n" if lost else ""
    return (
        f"```bash\n{command}\n```\n{resumed}\n{SETTINGS_FILE} is in this repository. What it does "
        f"not name is the default of the version below.\n\n```yaml\n{settings}```\n"
    )


def _went_on_in_place(arguments: dict[str, Any], folder: Path) -> bool:
    """Say whether a run went on from what it had in its own folder."""
    trained = str(arguments.get("trained_agent") or "")
    return bool(trained) and Path(trained).resolve().is_relative_to(folder.resolve())


def _command(agent: Agent, arguments: dict[str, Any]) -> str:
    command = f"sb3-pmpo train --algo {agent.algorithm} --env {agent.env_name.gym_id}"
    command += f" --conf-file {SETTINGS_FILE}"
    if arguments.get("seed", -1) >= 0:
        command += f" --seed {arguments['seed']}"
    if arguments.get("from_pretrained"):
        command += f" --from-pretrained {arguments['from_pretrained']}"
    if agent.model_path.name == "best_model.zip":  # chosen by these evaluations
        for name in ("eval_freq", "eval_episodes", "n_eval_envs"):
            if arguments.get(name):
                command += f" --{name.replace('_', '-')} {arguments[name]}"
    if arguments.get("save_replay_buffer"):
        command += " --save-replay-buffer"
    if packages := arguments.get("gym_packages"):
        command += f" --gym-packages {' '.join(packages)}"
    return command


def _parts(agent: Agent, steps: int) -> list[dict[str, Any]]:
    """Return what ``train`` was called with for each part of a resumed run, the first one first.

    The length of a part is what its model has more than the one that it began with: the part may
    have gone on in its folder, or been stopped.
    """
    parts: list[dict[str, Any]] = []
    folder, arguments, settings = agent.folder, agent.arguments, agent.settings
    while True:
        if _went_on_in_place(arguments, folder):
            arguments = arguments | {"trained_agent": ""}
        trained = arguments.get("trained_agent")
        before = _steps_of(Path(trained)) if trained else 0
        given = arguments.get("n_timesteps", -1)
        length = given if given > 0 else settings.get("n_timesteps", -1)
        if before is not None:
            length = steps - before
        parts.insert(0, arguments | {"n_timesteps": length})
        if not trained or before is None or len(parts) > 100:
            return parts
        folder = Path(trained) if Path(trained).is_dir() else Path(trained).parent
        saved = folder / agent.env_name / "args.yml"
        if not saved.is_file():
            return parts
        steps, arguments, settings = before, read(saved), read(saved.with_name("config.yml"))


def _steps_of(model: Path) -> int | None:
    """Read a model's steps; None if it is not there, or no model."""
    try:
        with zipfile.ZipFile(model) as archive:
            return int(json.loads(archive.read("data"))["num_timesteps"])
    except (OSError, KeyError, ValueError, zipfile.BadZipFile):
        return None


def _snippet(agent: Agent, scores: Scores, repo_id: str) -> str:
    """Write Python that loads the agent and measures its score again."""
    cls, env_id, kwargs = agent.algorithm_class, agent.env_name.gym_id, agent.env_kwargs
    imports, wrapping = _wrap_lines(as_wrappers(agent.settings.get("env_wrapper")))
    vec_imports, vec_wrapping = _vec_lines(agent.settings)
    imports += vec_imports
    for module in agent.arguments.get("gym_packages", ()):
        imports.append(f"import {module}")
    make = f"{env_id!r}, seed={scores.seed}"
    make += ", wrapper_class=wrap" if wrapping else ""
    make += f", env_kwargs={kwargs}" if kwargs else ""
    if env_id.startswith("dm_control/") and not any("sb3_pmpo.envs" in line for line in imports):
        imports.append("import shimmy  # it registers the Control Suite's ids")
    small = ", buffer_size=1" if issubclass(cls, OffPolicyAlgorithm) else ""  # enough to act
    lines = [
        "from huggingface_hub import snapshot_download",
        "from stable_baselines3.common.env_util import make_vec_env",
        "from stable_baselines3.common.evaluation import evaluate_policy",
        f"from {cls.__module__.partition('.')[0]} import {cls.__name__}",
        *imports,
        "",
        *(["", "def wrap(env):", *(f"    {line}" for line in wrapping), "    return env", "", ""])
        * bool(wrapping),
        f"folder = snapshot_download({repo_id!r})",
        f"env = make_vec_env({make})",
        *vec_wrapping,
        f'model = {cls.__name__}.load(f"{{folder}}/{ModelName(agent.algorithm, agent.env_name)}",'
        f" env=env{small})",
        f"env.seed({scores.seed})  # loading has seeded it as training did",
        "mean, std = evaluate_policy(model, env, "
        f"n_eval_episodes={scores.n_eval_episodes}, deterministic={scores.is_deterministic})",
        'print(f"{mean:.2f} +/- {std:.2f}")',
    ]
    return "\n".join(lines) + "\n"


def _wrap_lines(wrappers: Wrappers) -> tuple[list[str], list[str]]:
    imports, lines = [], []
    for entry in wrappers:
        for path, arguments in entry.items():
            module, _, name = path.rpartition(".")
            imports.append(f"from {module} import {name}")
            given = "".join(f", {key}={value!r}" for key, value in arguments.items())
            lines.append(f"env = {name}(env{given})")
    return imports, lines


def _vec_lines(settings: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Write what the Zoo wraps around the vectorised environment."""
    imports, lines = _wrap_lines(as_wrappers(settings.get("vec_env_wrapper")))
    if settings.get("normalize"):
        imports.append("from stable_baselines3.common.vec_env import VecNormalize")
        lines.append('env = VecNormalize.load(f"{folder}/vec_normalize.pkl", env)')
        lines.append("env.training = env.norm_reward = False")
    if settings.get("frame_stack"):
        imports.append("from stable_baselines3.common.vec_env import VecFrameStack")
        lines.append(f"env = VecFrameStack(env, {settings['frame_stack']})")
    return imports, lines
