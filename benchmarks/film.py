"""Draw the moving picture of the front page from policies that ship.

    MUJOCO_GL=egl python -m benchmarks.film cheetah-run walker-walk walker-run

writes ``docs/images/policies.gif``: the policies in rows of three, each at its world's speed.
"""

from __future__ import annotations

import sys

from PIL import Image

from benchmarks.gallery import DOCS, moving
from sb3_pmpo import pretrained

OUTPUT = DOCS / "images" / "policies.gif"
SIZE, COLUMNS = 200, 3
FRAMES_PER_SECOND, SECONDS = 15, 5.0


def main() -> None:
    """Read the names from the command line."""
    names = sys.argv[1:]
    films = [
        moving(name, pretrained.read(name), SIZE, SECONDS, FRAMES_PER_SECOND) for name in names
    ]
    rows = -(-len(films) // COLUMNS)
    pictures = []
    for images in zip(*films, strict=False):
        picture = Image.new("RGB", (SIZE * min(COLUMNS, len(films)), SIZE * rows), "white")
        for number, image in enumerate(images):
            picture.paste(image, (SIZE * (number % COLUMNS), SIZE * (number // COLUMNS)))
        pictures.append(picture)
    palette = pictures[len(pictures) // 2].quantize(64, dither=Image.Dither.NONE)
    small = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    duration = round(1000 / FRAMES_PER_SECOND)
    small[0].save(OUTPUT, save_all=True, append_images=small[1:], duration=duration, loop=0)
    print(f"{OUTPUT}: {len(small)} frames, {OUTPUT.stat().st_size / 1024:.0f} KB")


if __name__ == "__main__":
    main()
