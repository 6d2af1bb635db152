"""The policies that ship with the package, from the runs of the benchmarks, and their page.

    python -m benchmarks.gallery pack --state runs/benchmarks --results benchmarks/results
    MUJOCO_GL=egl python -m benchmarks.gallery page

``pack`` takes the best seed of each task, by the run's last evaluation, scores it over 100 other
episodes and writes ``sb3_pmpo/pretrained/<task>.safetensors``. A policy that is there and whose
last evaluation was higher stays. ``page`` writes ``docs/gallery.md`` with a moving picture and a
curve of each.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import records
from benchmarks.models import algorithm_class, env_id_of, make_task
from benchmarks.records import Places
from benchmarks.suites import SUITES, Run
from sb3_pmpo import pretrained
from sb3_pmpo.pretrained import PretrainedFile, Score
from sb3_pmpo.storage.checkpoints import read_checkpoint

if TYPE_CHECKING:
    from PIL.Image import Image

#: Seeds of the episodes of a score. Those that chose the seed and the step are others.
SCORE_SEED, EPISODES = 20_000, 100
LARGEST = 150_000
FOLDER = Path(pretrained.__file__).parent


def pack(
    places: Places,
    suite: str,
    tasks: list[str] | None,
    output: Path,
    variant: tuple[str, dict[str, Any]] = ("PMPO", {}),
) -> list[Path]:
    """Write the best policy of each task for which there are runs.

    :param places: of the runs' rows and checkpoints.
    :param suite: by name.
    :param tasks: None for all of the suite's.
    :param output: folder of the policies.
    :param variant: name and arguments of what was trained, as of ``benchmarks.learning``.
    :return: the files that were written.
    """
    written = []
    name, arguments = variant
    chosen_from = (
        SUITES[suite].with_variants({name: arguments}).only(algorithms=[name], tasks=tasks)
    )
    runs = [run for run in chosen_from.runs(suite) if "@" not in run.task]
    for task in dict.fromkeys(run.task for run in runs):
        there = [run for run in runs if run.task == task and last_model(places.checkpoints(run))]
        if not there:
            continue
        best = max(there, key=lambda run: _last_return(run, places))
        path = output / f"{task}.safetensors"
        chosen = f"best of {len(there)} seeds by their last evaluation"
        if pack_run(
            best, places, path, chosen if len(there) > 1 else "the only seed whose model was kept"
        ):
            written.append(path)
    return written


def last_model(folder: Path) -> Path | None:
    """Return the model of the last checkpoint in a run's folder, None if there is none."""
    with contextlib.suppress(FileNotFoundError):
        return read_checkpoint(folder / "checkpoint").path("model")
    found = folder.glob("checkpoint_*/model.zip")
    return max(found, key=lambda path: int(path.parent.name.partition("_")[2]), default=None)


def _last_return(run: Run, places: Places) -> float:
    rows = records.read(places.rows(run))
    return float(rows[-1]["return_mean"]) if rows else float("-inf")


def pack_run(run: Run, places: Places, path: Path, chosen: str) -> bool:
    """Score the last checkpoint of a run and write its policy, unless a better one is there.

    :param chosen: how the run was chosen, for the header.
    :return: whether it was written.
    """
    rows = records.read(places.rows(run))
    found = last_model(places.checkpoints(run))
    model = algorithm_class(run.algorithm).load(found, device="cpu", buffer_size=1)
    steps = model.num_timesteps * run.action_repeat
    if path.exists():  # chosen before they are scored: the score's episodes have no part in it
        there, last = pretrained.read(path).about["curve"][-1][1], _last_return(run, places)
        if there >= last:
            print(f"{path.name}: what is there stays, at {there} in its run; this run has {last}")
            return False
    score = measure(model, run)
    command = f"python -m benchmarks.learning run {run.suite} --tasks {run.task}"
    if run.arguments:
        command += f" --variant {run.algorithm} {shlex.quote(json.dumps(run.arguments))}"
    told = _environment(run) | {
        "score": score._asdict(),
        "curve": [[int(row["steps"]), float(row["return_mean"])] for row in rows],
        "steps": steps,
        "seed": run.seed,
        "chosen": chosen,
        "command": f"{command} --algorithms {run.algorithm} --seeds {run.seed} --steps {steps}",
        "versions": rows[-1]["versions"],
        "commit": rows[-1]["commit"],
    }
    pretrained.save(model, path, told)
    if path.stat().st_size > LARGEST:
        _round(model, run, score, told, path)
    print(f"{path.name}: {score}, {path.stat().st_size / 1000:.0f} kB", flush=True)
    return True


def measure(model: Any, run: Run) -> Score:
    """Score a model over :data:`EPISODES` episodes of seeds of their own, all at once."""
    episodes = EPISODES
    envs = [make_task(run.task, run.action_repeat, run.algorithm) for _ in range(episodes)]
    try:
        seen = [env.reset(seed=SCORE_SEED + i)[0] for i, env in enumerate(envs)]
        returns, open_ones = np.zeros(episodes), list(range(episodes))
        while open_ones:
            actions, _ = model.predict(np.stack([seen[i] for i in open_ones]), deterministic=True)
            for i, action in zip(tuple(open_ones), actions, strict=True):
                seen[i], reward, terminated, truncated, _ = envs[i].step(action)
                returns[i] += float(reward)
                if terminated or truncated:
                    open_ones.remove(i)
        return pretrained.scored(returns, SCORE_SEED)
    finally:
        for env in envs:
            env.close()


def _environment(run: Run) -> dict[str, Any]:
    env_id, wrapper = env_id_of(run.task), []
    if env_id.startswith("dm_control/"):
        wrapper = [{"sb3_pmpo.envs.control_suite": {"action_repeat": run.action_repeat}}]
    elif run.action_repeat > 1:
        wrapper = [{"sb3_pmpo.envs.ActionRepeat": {"n_repeats": run.action_repeat}}]
    return {"env": env_id, "env_wrapper": wrapper}


def _round(model: Any, run: Run, score: Score, told: dict[str, Any], path: Path) -> None:
    """Write the weights as float16, with the score of these.

    :raises ValueError: if they score lower than the whole ones' interval, or are too large yet.
    """
    pretrained.save(model, path, told, half=True)
    rounded = measure(pretrained.load(path, "cpu"), run)
    if rounded.mean < score.low or path.stat().st_size > LARGEST:
        size = path.stat().st_size
        path.unlink()
        raise ValueError(f"{run.name} in float16 has {size} bytes and {rounded}, was {score}")
    pretrained.save(model, path, told | {"score": rounded._asdict()}, half=True)


# ---------------------------------------------------------------------- the page

DOCS = Path(__file__).parent.parent / "docs"
IMAGES = Path("images/gallery")
#: A moving picture: its edge in pixels, seconds, frames a second, and its bytes at most.
EDGE, SECONDS, FPS, LARGEST_PICTURE = 240, 6, 15, 300_000


def page(docs: Path) -> Path:
    """Write the gallery's page, and the pictures that are missing or older than their policies."""
    (docs / IMAGES).mkdir(parents=True, exist_ok=True)
    for name in pretrained.names():
        file = pretrained.read(name)
        picture, curve = docs / IMAGES / f"{name}.webp", docs / IMAGES / f"{name}.svg"
        for path, make in ((picture, draw_moving), (curve, draw_curve)):
            if (
                not path.exists()
                or path.stat().st_mtime < pretrained.files.find(name).stat().st_mtime
            ):
                make(name, file, path)
    (docs / "gallery.md").write_text(text())
    return docs / "gallery.md"


def text() -> str:
    """Write the page, without the pictures."""
    found = pretrained.names()
    entries = "\n".join(_entry(name, pretrained.read(name)) for name in found)
    return _HEAD.replace("{first}", found[0]) + entries


#: Without it a command finds the run's rows in the clone, and has nothing to do.
ELSEWHERE = "--results runs/again --state runs/again"

_HEAD = """# Gallery

These policies ship with the package. Each is a file of numbers of at most 150 kB, without a pickle.

```python
from sb3_pmpo import pretrained

model = pretrained.load("{first}")
env = pretrained.make_env("{first}")
observation, _ = env.reset(seed=0)
action, _ = model.predict(observation, deterministic=True)
```

```sh
sb3-pmpo enjoy --pretrained {first} --no-render
sb3-pmpo evaluate {first} -n 100
MUJOCO_GL=egl sb3-pmpo record --pretrained {first} -n 500
sb3-pmpo export --pretrained {first}
sb3-pmpo train --from-pretrained {first} -n 20000
```

`train --from-pretrained` starts with the trained policy and with untrained critics. Until
`learning_starts` decisions only the critics learn. Then the policy is released, and its return may
drop. In one seed of cartpole-swingup it fell from 871 to 333 by decision 1200. A longer hold only
delayed the drop: with `-params learning_starts:5000` the return was 868 at 4800 decisions and 134
at 5600.

The score is the mean return over 100 episodes with a 95% bootstrap interval of the episodes. Where
several seeds were trained, the one with the best last evaluation ships; the score comes from other
episodes. Budgets are small, 10k to 50k environment steps for most. A task of the suite has returns
from 0 to 1000: where a score is below 300, the policy has only begun to learn its task.
In a clone with the extra `benchmarks`, the command below a policy trains it again, with the code of
its commit. Those that name `PMPO` alone were trained by critics without embeddings, which were the
default then; today the suite `development` has them as `--algorithms PMPO-without-embeddings`.
The page is made by `python -m benchmarks.gallery page`, the policies by
`python -m benchmarks.gallery pack`. `pretrained.about("{first}")` has versions, commit, seed
and command.

"""


def _entry(name: str, file: PretrainedFile) -> str:
    told = file.about
    changed = _arguments(told["command"])
    with_them = f", with {changed} instead of the defaults" if changed else ""
    return f"""## {name}

| | |
|---|---|
| ![{name}, acting]({IMAGES}/{name}.webp) | ![return by environment steps]({IMAGES}/{name}.svg) |

Return **{file.score}** after {told["steps"]:,} environment steps of `{told["env"]}`,
seed {told["seed"]} ({told["chosen"]}){with_them}:

```sh
{told["command"]} {ELSEWHERE}
```
"""


def _arguments(command: str) -> str:
    """Write the arguments of the variant that a command of ``benchmarks.learning`` names."""
    words = shlex.split(command)
    if "--variant" not in words:
        return ""
    arguments = json.loads(words[words.index("--variant") + 2])
    return " and ".join(f"`{name}={value}`" for name, value in arguments.items())


def draw_moving(name: str, file: PretrainedFile, path: Path) -> None:
    """Let a policy act from the seed 0 and write what is seen as WebP, at its world's speed."""
    pictures = moving(name, file, EDGE, SECONDS, FPS)
    for quality in (80, 60, 40, 20):
        pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=1000 // FPS,
                         loop=0, quality=quality, method=6)  # fmt: skip
        if path.stat().st_size <= LARGEST_PICTURE:
            return
    raise ValueError(
        f"{path} has {path.stat().st_size} bytes, at most {LARGEST_PICTURE} are allowed"
    )


def moving(name: str, file: PretrainedFile, edge: int, seconds: float, fps: int) -> list[Image]:
    """Let a policy act from the seed 0; what is seen, in squares, at its world's speed."""
    import gymnasium as gym
    from PIL import Image, ImageOps
    from stable_baselines3.common.vec_env import DummyVecEnv

    from sb3_pmpo.tools.zoo.video import decisions_per_second, frames

    env_id = file.about["env"]
    size: dict[str, Any] = {}
    if env_id.startswith("dm_control/"):
        size = {"render_kwargs": {"height": edge, "width": edge, "camera_id": 0}}
    elif "mujoco" in str(gym.spec(env_id).entry_point):
        size = {"height": edge, "width": edge}
    env = DummyVecEnv([lambda: pretrained.make_env(name, render_mode="rgb_array", **size)])
    try:
        n_decisions = int(seconds * decisions_per_second(env))
        options: Any = {"n_decisions": n_decisions, "seed": 0, "deterministic": True, "fps": fps}
        seen = frames(pretrained.load(name, "cpu"), env, **options)
        images = (Image.fromarray(frame) for _, frame in seen)
        return [ImageOps.pad(image, (edge, edge), color="white") for image in images]
    finally:
        env.close()


def draw_curve(name: str, file: PretrainedFile, path: Path) -> None:
    """Draw the training run's evaluations, and the score with its interval."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.4, 2.4), layout="constrained")
    axis = figure.subplots()
    steps, returns = zip(*file.about["curve"], strict=True)
    axis.plot(steps, returns, marker=".")
    score = file.score
    assert score is not None  # pack gives each one
    errors = [[score.mean - score.low], [score.high - score.mean]]
    axis.errorbar(file.about["steps"], score.mean, yerr=errors, fmt="k_", capsize=3)
    axis.set(title=name, xlabel="environment steps", ylabel="return")
    axis.grid(alpha=0.3)
    figure.savefig(path, metadata={"Date": None})


# ---------------------------------------------------------------------- command line


def main(arguments: list[str] | None = None) -> None:
    """Pack, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack", help="write the best policy of each task")
    packing.add_argument("--suite", default="development", choices=list(SUITES))
    packing.add_argument("--tasks", nargs="+", help="only these (default: the suite's)")
    packing.add_argument("--variant", nargs=2, metavar=("NAME", "JSON"), default=("PMPO", "{}"),
                         help="as of benchmarks.learning (default: the default)")  # fmt: skip
    packing.add_argument("--results", type=Path, default=Places().results)
    packing.add_argument("--state", type=Path, default=Places().state)
    packing.add_argument("--output", type=Path, default=FOLDER, help="default: the package")
    paging = commands.add_parser("page", help="write docs/gallery.md and its pictures")
    paging.add_argument("--docs", type=Path, default=DOCS)
    options = parser.parse_args(arguments)
    if options.command == "pack":
        name, text_of = options.variant
        places = Places(options.results, options.state)
        pack(places, options.suite, options.tasks, options.output, (name, json.loads(text_of)))
    else:
        print(page(options.docs))


if __name__ == "__main__":
    main()
