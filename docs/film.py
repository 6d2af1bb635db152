"""Draw the moving picture of the front page from trained models.

    MUJOCO_GL=egl python docs/film.py cartpole-swingup=model.zip walker-walk=model.zip

writes ``docs/images/policies.gif``: the policies side by side, at their own speed.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from sb3_pmpo import PMPO
from sb3_pmpo.envs import make_dmc_env

OUTPUT = Path(__file__).parent / "images" / "policies.gif"
SIZE = 200
FRAMES_PER_SECOND = 20
SECONDS = 7.0


def frames(task: str, model_path: str) -> list[np.ndarray]:
    """Let a model act for some seconds; return what is seen, ``[SIZE, SIZE, 3]`` each."""
    env = make_dmc_env(
        task,
        action_repeat=2,
        render_mode="rgb_array",
        render_kwargs={"height": SIZE, "width": SIZE, "camera_id": 0},
    )
    model = PMPO.load(model_path, buffer_size=1, device="cpu")
    stride = max(1, round(env.metadata["render_fps"] / FRAMES_PER_SECOND))
    observation, _ = env.reset(seed=0)
    seen = []
    for decision in range(round(SECONDS * env.metadata["render_fps"])):
        if decision % stride == 0:
            seen.append(np.asarray(env.render()))
        action, _ = model.predict(observation, deterministic=True)
        observation, *_ = env.step(action)
    env.close()
    return seen


def main() -> None:
    """Read tasks and models from the command line."""
    pairs = [argument.partition("=")[::2] for argument in sys.argv[1:]]
    films = [frames(task, path) for task, path in pairs]
    pictures = [Image.fromarray(np.concatenate(row, axis=1)) for row in zip(*films, strict=False)]
    palette = pictures[len(pictures) // 2].quantize(48, dither=Image.Dither.NONE)
    small = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    duration = round(1000 / FRAMES_PER_SECOND)
    small[0].save(OUTPUT, save_all=True, append_images=small[1:], duration=duration, loop=0)
    print(f"{OUTPUT}: {len(small)} frames, {OUTPUT.stat().st_size / 1024:.0f} KB")


if __name__ == "__main__":
    main()
