"""Clips that are shown to a person: what is seen of them, and the steps that an answer labels.

A set of clips is a folder: ``clips.json`` names them; each has an ``.mp4`` and an ``.npz``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space_channels_first

from sb3_pmpo.feedback.answers import AnswerLog
from sb3_pmpo.feedback.buffer import FeedbackBuffer
from sb3_pmpo.feedback.columns import by_name, observations_of
from sb3_pmpo.feedback.credit import Credit
from sb3_pmpo.files import whole_file
from sb3_pmpo.offline.columns import DatasetError
from sb3_pmpo.offline.dataset import LabelledDataset
from sb3_pmpo.offline.spaces import space_from_json, space_to_json

INDEX = "clips.json"
ANSWERS = "answers.jsonl"
FORMAT = "sb3_pmpo clips"
_NAME = re.compile(r"clip-\d{4,}")


class Segment(NamedTuple):
    """Steps in a row, and a picture before each of them.

    :param observations: ``[K, ...]``, or a dictionary of such.
    :param actions: ``[K, ...]`` in units of the environment.
    :param frames: ``[K, height, width, 3]`` of bytes.
    :param rows: ``[K]`` where the steps are in the data set that they were cut from.
    """

    observations: Any
    actions: np.ndarray
    frames: np.ndarray
    rows: np.ndarray | None = None


@dataclass(frozen=True)
class ClipSet:
    """A folder of clips.

    :param folder: where they are.
    :param names: in the order in which they are shown.
    :param observation_space: of the steps.
    :param action_space: of the steps.
    :param about: what the clips are of, for the page and for who learns from the answers.
    """

    folder: Path
    names: list[str]
    observation_space: spaces.Space
    action_space: spaces.Space
    about: dict[str, str]

    def video(self, name: str) -> Path:
        """Return the file of a clip that is in the set.

        :raises KeyError: if it is not; so no name reaches a file outside the folder.
        """
        if name not in self.names:
            raise KeyError(name)
        return self.folder / f"{name}.mp4"

    def answers(self) -> AnswerLog:
        """Open the log of the answers."""
        return AnswerLog(self.folder / ANSWERS, self.names)

    def feedback(
        self, credit: str | Credit = "uniform", *, delay: int = 0, source: str = "person"
    ) -> FeedbackBuffer:
        """Gather the answers so far; a clip's steps share its answer.

        :param credit: as of :meth:`FeedbackBuffer.add_segment`, as is ``delay``, which leaves
            nothing of a clip that is as short.
        """
        buffer = FeedbackBuffer(self.observation_space, self.action_space)
        for name, label in self.answers().labels().items():
            seen, actions = self._steps(name)
            if len(actions) <= delay:
                continue  # the answer is to what came before it
            buffer.add_segment(
                seen, actions, label, credit, delay=delay, weight=len(actions), source=source
            )
        return buffer

    def dataset(self) -> LabelledDataset:
        """Gather the steps of all clips, with the labels of those that were answered."""
        labels = self.answers().labels()
        steps = [self._steps(name) for name in self.names]
        lengths = [len(actions) for _, actions in steps]
        parts = [by_name(seen) for seen, _ in steps]
        columns = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        return LabelledDataset(
            observations_of(columns),
            np.concatenate([actions for _, actions in steps]),
            np.repeat([labels.get(name, 0) for name in self.names], lengths),
            episode_ids=np.repeat(np.arange(len(lengths)), lengths),
            observation_space=self.observation_space,
            action_space=self.action_space,
        )

    def labels_of(self, dataset: LabelledDataset) -> LabelledDataset | None:
        """Give the data set that the clips were cut from the labels of the answers so far.

        It is known by its rows, for a folder may be moved.

        :return: None if the clips are of another one.
        """
        labels, answers = np.array(dataset.labels), self.answers().labels()
        for name in self.names:
            columns = self._columns(name)
            rows = columns.pop("rows", None)
            if rows is None or rows.max() >= len(dataset):
                return None
            there = dataset.rows(rows)
            known = by_name(there.observations) | {"actions": there.actions}
            if known.keys() != columns.keys():
                return None
            if not all(np.array_equal(known[key], values) for key, values in columns.items()):
                return None
            if name in answers:
                labels[rows] = answers[name]
        return dataset.with_labels(labels)

    def _steps(self, name: str) -> tuple[Any, np.ndarray]:
        columns = self._columns(name)
        return observations_of(columns), columns["actions"]

    def _columns(self, name: str) -> dict[str, np.ndarray]:
        path = self.folder / f"{name}.npz"
        try:
            with np.load(path, allow_pickle=False) as file:
                columns = {key: file[key] for key in file.files}
            if "actions" not in columns:
                raise KeyError("actions")
            return columns
        except (OSError, ValueError, KeyError) as error:
            raise DatasetError(f"{path} cannot be read: {error}; record the clips anew") from error


def write_clips(
    folder: Path,
    segments: Iterable[Segment],
    *,
    observation_space: spaces.Space,
    action_space: spaces.Space,
    fps: float,
    about: dict[str, str],
) -> ClipSet:
    """Write segments as clips; the index comes last, so that a folder without one is not whole.

    :param segments: one a clip.
    :param fps: pictures a second.
    :param about: what they are of, such as ``{"env": ...}``.
    :raises DatasetError: if there are none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / ANSWERS).exists():  # of other clips, whose index is gone
        raise DatasetError(
            f"{folder / ANSWERS} has the answers to other clips: choose another folder, or move "
            "that file away"
        )
    names = []
    for number, segment in enumerate(segments):
        name = f"clip-{number:04d}"
        _write_video(folder / f"{name}.mp4", segment.frames, fps)
        with whole_file(folder / f"{name}.npz", "npz") as target:
            columns = by_name(segment.observations)
            if segment.rows is not None:
                columns["rows"] = segment.rows
            np.savez(target, allow_pickle=False, actions=segment.actions, **columns)
        names.append(name)
    if not names:
        raise DatasetError("there is no clip to show: ask for at least one")
    clips = ClipSet(folder, names, observation_space, action_space, about)
    header = {
        "format": FORMAT,
        "version": 1,
        "clips": names,
        "about": about,
        "observation_space": space_to_json(observation_space),
        "action_space": space_to_json(action_space),
    }
    with whole_file(folder / INDEX, "json") as target:
        Path(str(target)).write_text(json.dumps(header, indent=1) + "\n", encoding="utf-8")
    return clips


def read_clips(folder: Path) -> ClipSet:
    """Open a folder of clips.

    :raises DatasetError: if it is none.
    """
    path = folder / INDEX
    if not path.is_file():
        raise DatasetError(f"{folder} holds no clips: sb3-pmpo label records some")
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
        if header["format"] != FORMAT or header["version"] != 1:
            raise DatasetError(f"its format is {header['format']!r}, version {header['version']!r}")
        names = [str(name) for name in header["clips"]]
        clips = ClipSet(
            folder,
            names,
            space_from_json(header["observation_space"]),
            space_from_json(header["action_space"]),
            {str(key): str(value) for key, value in header["about"].items()},
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DatasetError(f"{path} cannot be read: {error}; record the clips anew") from error
    strange = [name for name in names if not _NAME.fullmatch(name)]
    if strange or not names:
        raise DatasetError(f"{path} must name clips such as clip-0000, got {strange or names}")
    return clips


def segments_of(dataset: LabelledDataset, n_clips: int, length: int) -> Iterator[Segment]:
    """Cut clips from a data set whose observations are, or contain, pictures.

    :param n_clips: at most so many, spread over the episodes.
    :param length: steps of a clip.
    :raises DatasetError: if there are no pictures, or no episode is that long.
    """
    key = _picture_key(dataset.observation_space)
    starts = [
        start
        for rows in dataset.episodes()
        for start in range(rows.start, rows.stop - length + 1, length)
    ]
    if not starts:
        raise DatasetError(f"no episode has {length} steps: ask for shorter clips")
    space = dataset.observation_space
    pictures_of = space[key] if isinstance(space, spaces.Dict) else space
    first = is_image_space_channels_first(cast(spaces.Box, pictures_of))
    chosen = np.unique(np.linspace(0, len(starts) - 1, min(n_clips, len(starts))).astype(int))
    for number in chosen:
        index = np.arange(starts[number], starts[number] + length)
        rows = dataset.rows(index)
        pictures = rows.observations[key] if key else rows.observations
        yield Segment(rows.observations, rows.actions, _to_frames(pictures, first), index)


def _picture_key(space: spaces.Space) -> str:
    parts = space.spaces if isinstance(space, spaces.Dict) else {"": space}
    for key, part in parts.items():
        if isinstance(part, spaces.Box) and part.dtype == np.uint8 and len(part.shape) == 3:
            return key
    raise DatasetError(
        f"the observations {space} contain no pictures (bytes of three axes) to show: record clips "
        "of a policy in its environment instead"
    )


def _to_frames(pictures: np.ndarray, channels_first: bool) -> np.ndarray:
    """Bring pictures to colours, enlarged to 240 lines at least.

    Of pictures that are stacked along their channels the newest counts, the last: of three channels
    where their number is a multiple of three, else of one, a grey.

    :param pictures: ``[K, C, H, W]`` or ``[K, H, W, C]``.
    :return: ``[K, H, W, 3]``.
    """
    if channels_first:
        pictures = np.moveaxis(pictures, 1, -1)
    if pictures.shape[-1] % 3 == 0:
        colours = pictures[..., -3:]
    else:
        colours = np.repeat(pictures[..., -1:], 3, -1)
    factor = max(1, -(-240 // colours.shape[1]))
    return colours.repeat(factor, 1).repeat(factor, 2)


def _write_video(path: Path, frames: np.ndarray, fps: float) -> None:
    from moviepy.video.io.ffmpeg_writer import FFMPEG_VideoWriter

    height, width = frames.shape[1] // 2 * 2, frames.shape[2] // 2 * 2  # players want even sizes
    with FFMPEG_VideoWriter(str(path), (width, height), fps) as writer:
        for frame in frames[:, :height, :width]:
            writer.write_frame(np.ascontiguousarray(frame))
