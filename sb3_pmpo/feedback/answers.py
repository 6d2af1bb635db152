"""The answers to a set of clips: a line each, on the disk before the next clip is shown."""

from __future__ import annotations

import json
import os
import threading
import time
from collections import Counter
from pathlib import Path

#: What an answer says, and the label that it gives a clip's steps; None: the clip is left out.
LABELS: dict[str, int | None] = {"accept": 1, "reject": -1, "skip": None}


class AnswerLog:
    """Answers by clip, kept as lines of JSON that are only ever appended.

    A line is written and synced before :meth:`answer` returns. A process that was killed inside a
    write leaves half a line, which the next one drops. The last answer to a clip counts.

    :param path: of the file, made if it is not there.
    :param clips: the clips' names, in the order in which they are asked about.
    """

    def __init__(self, path: Path, clips: list[str]) -> None:
        self.path, self.clips = path, clips
        self._lock = threading.Lock()
        self._given: list[tuple[str, str]] = []  # (clip, answer), without what was undone
        for number, line in enumerate(_drop_torn_line(path), start=1):
            if line.strip():
                self._replay(line, number)

    @property
    def answers(self) -> dict[str, str]:
        """Return the last answer to each clip that has one."""
        return dict(self._given)

    @property
    def current(self) -> str | None:
        """Return the first clip without an answer; None when all have one."""
        answers = self.answers
        return next((clip for clip in self.clips if clip not in answers), None)

    def counts(self) -> dict[str, int]:
        """Count the clips by answer."""
        counted = Counter(self.answers.values())
        return {name: counted[name] for name in LABELS}

    def labels(self) -> dict[str, int]:
        """Return the labels of the clips that were accepted or rejected."""
        found = {clip: LABELS[answer] for clip, answer in self.answers.items()}
        return {clip: label for clip, label in found.items() if label is not None}

    def answer(self, clip: str, answer: str) -> None:
        """Write an answer to the disk.

        :raises ValueError: if there is no such clip or answer.
        """
        if clip not in self.clips:
            raise ValueError(f"there is no clip {clip!r}")
        if answer not in LABELS:
            raise ValueError(f"the answer must be one of {list(LABELS)}, got {answer!r}")
        with self._lock:
            self._write({"clip": clip, "answer": answer})
            self._given.append((clip, answer))

    def undo(self) -> str | None:
        """Take the last answer back, also one of an earlier day; return its clip, if there is one.

        Answers to one clip that follow each other are one: a page may have sent it twice.

        Only the file's end is ever written: an undone answer stays there, with a line that says so.
        """
        with self._lock:
            if not self._given:
                return None
            clip = self._given[-1][0]
            while self._given and self._given[-1][0] == clip:
                self._write({"clip": clip, "answer": "undo"})
                self._given.pop()
            return clip

    def _write(self, entry: dict[str, str]) -> None:
        line = json.dumps(entry | {"time": f"{time.time():.3f}"}) + "\n"
        before = self.path.stat().st_size if self.path.exists() else 0
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            if self.path.exists():
                os.truncate(self.path, before)  # half a line would spoil the next one
            raise

    def _replay(self, line: bytes, number: int) -> None:
        try:
            entry = json.loads(line)
            clip, answer = entry["clip"], entry["answer"]
            if not (isinstance(clip, str) and isinstance(answer, str)):
                raise TypeError("clip and answer must be text")
        except (ValueError, KeyError, TypeError) as error:
            shown = line.decode("utf-8", "backslashreplace")
            raise ValueError(
                f"{self.path}, line {number} is no answer: {shown!r}; mend or delete that line"
            ) from error
        if answer == "undo":
            of_clip = [number for number, (given, _) in enumerate(self._given) if given == clip]
            if of_clip:
                del self._given[of_clip[-1]]
        elif answer in LABELS:
            self._given.append((clip, answer))
        else:
            raise ValueError(
                f"{self.path}, line {number}: {answer!r} is no answer, which are {list(LABELS)}; "
                "mend or delete that line"
            )


def _drop_torn_line(path: Path) -> list[bytes]:
    """Read the whole lines; cut off what a killed process left behind them."""
    if not path.exists():
        return []
    content = path.read_bytes()
    end = content.rfind(b"\n") + 1
    if end < len(content):
        with path.open("r+b") as file:
            file.truncate(end)
            os.fsync(file.fileno())
    return content[:end].split(b"\n")
