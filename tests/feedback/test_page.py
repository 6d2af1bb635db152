"""The page's server: answers, undo, what is refused; answers survive a kill."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

pytest.importorskip("starlette")
pytest.importorskip("httpx")
from moviepy.video.io.ffmpeg_reader import FFMPEG_VideoReader
from stable_baselines3.common.vec_env import DummyVecEnv
from starlette.testclient import TestClient

from sb3_pmpo import PMPO
from sb3_pmpo.feedback.answers import AnswerLog
from sb3_pmpo.feedback.clips import ClipSet, Segment, read_clips, segments_of, write_clips
from sb3_pmpo.feedback.server import is_loopback, make_app
from sb3_pmpo.offline import DatasetError, LabelledDataset
from sb3_pmpo.tools.checkpoints import lock
from sb3_pmpo.tools.cli import main
from sb3_pmpo.tools.label import (
    _make_server,
    _unanswered,
    learning_command,
    record_segments,
)
from sb3_pmpo.tools.offline import read_data
from sb3_pmpo.tools.settings import KeyValues, as_words

SEEN, DONE = spaces.Box(-1, 1, (2,)), spaces.Box(-1, 1, (1,))


def make_clips(folder: Path, n: int = 3) -> ClipSet:
    def segments() -> Any:
        for number in range(n):
            frames = np.full((4, 32, 48, 3), 60 * number, np.uint8)
            seen = np.full((4, 2), number / 10, np.float32)
            yield Segment(seen, np.zeros((4, 1), np.float32), frames)

    return write_clips(
        folder, segments(), observation_space=SEEN, action_space=DONE, fps=10, about={"env": "Toy"}
    )


@pytest.fixture
def clips(tmp_path: Path) -> ClipSet:
    return make_clips(tmp_path / "labels")


def client(clips: ClipSet, token: str | None = None, **kwargs: Any) -> tuple[TestClient, list[int]]:
    finished: list[int] = []
    app = make_app(
        clips,
        clips.answers(),
        command="learn it",
        finish=lambda: finished.append(1),
        token=token,
    )
    return TestClient(app, **{"base_url": "http://127.0.0.1:8000"} | kwargs), finished


def test_from_the_first_clip_to_the_last(clips: ClipSet) -> None:
    page, finished = client(clips)
    assert "Accept or reject" in page.get("/").text
    state = page.get("/api/state").json()
    assert (state["current"], state["following"], state["done"]) == ("clip-0000", "clip-0001", 0)
    assert page.get("/clips/clip-0000.mp4").headers["content-type"] == "video/mp4"
    for clip, answer in (("clip-0000", "accept"), ("clip-0001", "reject")):
        state = page.post("/api/answer", json={"clip": clip, "answer": answer}).json()
    assert state["counts"] == {"accept": 1, "reject": 1, "skip": 0}
    state = page.post("/api/undo", json={}).json()
    assert state["current"] == "clip-0001"
    for clip, answer in (("clip-0001", "skip"), ("clip-0002", "reject")):
        state = page.post("/api/answer", json={"clip": clip, "answer": answer}).json()
    assert state["current"] is None
    assert state["command"] == "learn it"
    page.post("/api/finish", json={})
    assert finished == [1]
    buffer = read_clips(clips.folder).feedback()
    assert (buffer.n_accepted, buffer.n_rejected) == (4, 4)
    np.testing.assert_array_equal(buffer.rows(np.arange(8)).weights, 1.0)
    data = clips.dataset()
    assert data.labels.tolist() == [1] * 4 + [0] * 4 + [-1] * 4


def test_what_is_refused(clips: ClipSet) -> None:
    (clips.folder.parent / "secret.mp4").write_text("secret")
    page, _ = client(clips)
    for path in ("../secret", "..%2fsecret", "%2e%2e%2fsecret", "clips.json", "answers.jsonl"):
        assert page.get(f"/clips/{path}").status_code == 404
        assert page.get(f"/clips/{path}.mp4").status_code == 404
    answer = {"clip": "clip-0000", "answer": "accept"}
    assert page.post("/api/answer", json=answer | {"clip": "clip-9"}).status_code == 400
    assert page.post("/api/answer", json=answer | {"answer": "undo"}).status_code == 400
    assert page.post("/api/answer", json=answer | {"answer": 3}).status_code == 400
    assert page.post("/api/answer", json=[]).status_code == 400
    as_text = {"Content-Type": "text/plain"}  # what another site's form could send
    assert page.post("/api/answer", content=json.dumps(answer), headers=as_text).status_code == 415
    broken = {"Content-Type": "application/json"}
    assert page.post("/api/answer", content="{", headers=broken).status_code == 400
    assert page.get("/api/answer").status_code == 405
    assert clips.answers().answers == {}
    foreign, _ = client(clips, base_url="http://evil.example")
    assert foreign.get("/api/state").status_code == 403


def test_beyond_the_loopback_a_token_guards_the_page(clips: ClipSet) -> None:
    page, _ = client(clips, token="abc", base_url="http://192.168.0.7:80")
    assert page.get("/").status_code == 403
    assert page.get("/?token=abd").status_code == 403
    assert page.get("/clips/clip-0000.mp4").status_code == 403
    assert page.get("/?token=abc").status_code == 200
    assert page.get("/clips/clip-0000.mp4").status_code == 200  # the cookie
    for name in ("127.0.0.2:80", "[::1]:80"):
        assert (
            client(clips, base_url="http://localhost")[0]
            .get("/", headers={"host": name})
            .is_success
        )
    hosts = ("127.0.0.1", "localhost", "::1", "0.0.0.0", "192.168.0.7", "example.com")
    assert [is_loopback(host) for host in hosts] == [True, True, True, False, False, False]


def test_half_a_line_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    log = AnswerLog(path, ["a", "b", "c"])
    assert log.undo() is None
    log.answer("a", "accept")
    log.answer("b", "reject")
    with path.open("a") as file:
        file.write('{"clip": "c", "ans')
    log = AnswerLog(path, ["a", "b", "c"])
    assert log.answers == {"a": "accept", "b": "reject"}
    log.answer("a", "reject")  # on second thought
    assert AnswerLog(path, ["a", "b", "c"]).labels() == {"a": -1, "b": -1}
    assert log.undo() == "a"
    assert AnswerLog(path, ["a", "b", "c"]).labels() == {"a": 1, "b": -1}
    path.write_text("nonsense\n")
    with pytest.raises(ValueError, match="line 1 is no answer"):
        AnswerLog(path, ["a"])


def test_clips_of_a_dataset(tmp_path: Path) -> None:
    pictures = np.random.default_rng(0).integers(0, 255, (20, 3, 36, 36), np.uint8)
    data = LabelledDataset(pictures, np.zeros((20, 1)), episode_ids=np.repeat([0, 1], 10))
    segments = list(segments_of(data, 3, 5))
    assert len(segments) == 3
    assert segments[0].frames.shape == (5, 252, 252, 3)
    with pytest.raises(DatasetError, match="no episode has 11 steps"):
        list(segments_of(data, 3, 11))
    vectors = LabelledDataset(np.zeros((20, 3)), np.zeros((20, 1)))
    with pytest.raises(DatasetError, match="contain no pictures"):
        list(segments_of(vectors, 3, 5))
    with pytest.raises(DatasetError, match="no clip to show"):
        write_clips(tmp_path / "x", [], observation_space=SEEN, action_space=DONE, fps=1, about={})


def test_hostile_folders(clips: ClipSet) -> None:
    with pytest.raises(DatasetError, match="holds no clips"):
        read_clips(clips.folder.parent)
    index = clips.folder / "clips.json"
    header = json.loads(index.read_text())
    index.write_text(json.dumps(header | {"clips": ["../secret"]}))
    with pytest.raises(DatasetError, match=r"got \['../secret'\]"):
        read_clips(clips.folder)
    index.write_text("[]")
    with pytest.raises(DatasetError, match="cannot be read"):
        read_clips(clips.folder)


SERVE = """
import sys
from pathlib import Path
from sb3_pmpo.feedback.clips import read_clips
from sb3_pmpo.tools.label import _make_server
server, bound, address = _make_server(read_clips(Path(sys.argv[1])), "127.0.0.1", 0, "learn")
print(address, flush=True)
server.run(sockets=[bound])
"""


def test_a_kill_loses_no_answer(clips: ClipSet) -> None:
    pytest.importorskip("uvicorn")
    command = [sys.executable, "-c", SERVE, str(clips.folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        body = json.dumps({"clip": "clip-0001", "answer": "reject"}).encode()
        request = urllib.request.Request(
            f"{address}api/answer", body, {"Content-Type": "application/json"}
        )
        deadline = time.monotonic() + 20
        while True:
            try:
                with urllib.request.urlopen(request, timeout=5) as response:
                    assert json.load(response)["done"] == 1
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
    assert clips.answers().answers == {"clip-0001": "reject"}


def test_an_answer_that_found_no_room_spoils_no_other(
    clips: ClipSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = clips.answers()
    log.answer("clip-0000", "accept")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            log.answer("clip-0001", "accept")
    log.answer("clip-0002", "reject")
    assert clips.answers().labels() == {"clip-0000": 1, "clip-0002": -1}


def test_answers_do_not_pass_to_other_clips(clips: ClipSet) -> None:
    clips.answers().answer("clip-0000", "accept")
    (clips.folder / "clips.json").unlink()
    with pytest.raises(DatasetError, match="answers to other clips"):
        make_clips(clips.folder)


def test_labels_of_clips_go_back_to_the_data_they_were_cut_from(tmp_path: Path) -> None:
    """The rows are not in the data twice, of which one would count as unlabelled."""
    pictures = np.zeros((12, 16, 16, 3), np.uint8)
    data = LabelledDataset(pictures, np.zeros((12, 1)), episode_ids=np.repeat([0, 1], 6))
    data.save(tmp_path / "data")
    clips = write_clips(
        tmp_path / "labels", segments_of(data, 10, 3), observation_space=data.observation_space,
        action_space=data.action_space, fps=10,
        about={"env": "Toy", "dataset": str(tmp_path / "data")},
    )  # fmt: skip
    clips.answers().answer("clip-0001", "reject")
    found = read_data(str(tmp_path / "data"), str(clips.folder), gamma=0.9, seed=0)
    assert found.labels.tolist() == [0, 0, 0, -1, -1, -1, 0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("elsewhere", [True, False])
def test_data_are_known_from_any_folder(
    elsewhere: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By their rows: the path may have been relative, or the folder moved."""
    generator = np.random.default_rng(0)
    pictures = generator.integers(0, 255, (6, 16, 16, 3), np.uint8)
    LabelledDataset(pictures, np.zeros((6, 1))).save(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    data = LabelledDataset.load("data")
    clips = write_clips(
        tmp_path / "labels", segments_of(data, 10, 3), observation_space=data.observation_space,
        action_space=data.action_space, fps=10, about={"env": "Toy", "dataset": "data"},
    )  # fmt: skip
    clips.answers().answer("clip-0001", "reject")
    if elsewhere:
        (tmp_path / "other").mkdir()
        monkeypatch.chdir(tmp_path / "other")
        found = read_data("../data", "../labels", gamma=0.9, seed=0)
    else:
        Path("data").rename("moved")
        found = read_data("moved", "labels", gamma=0.9, seed=0)
    assert found.labels.tolist() == [0, 0, 0, -1, -1, -1]
    LabelledDataset(pictures[::-1], np.zeros((6, 1))).save(tmp_path / "others")
    assert len(read_data(str(tmp_path / "others"), str(clips.folder), gamma=0.9, seed=0)) == 12


def test_an_undo_takes_back_the_answer_to_its_own_clip(tmp_path: Path) -> None:
    """Also where two programs wrote into one file."""
    path, names = tmp_path / "answers.jsonl", ["a", "b"]
    one, other = AnswerLog(path, names), AnswerLog(path, names)
    one.answer("a", "accept")
    other.answer("a", "reject")
    one.answer("b", "accept")
    other.undo()
    assert AnswerLog(path, names).answers == {"a": "accept", "b": "accept"}


@pytest.mark.parametrize("second", ["accept", "reject"])
def test_an_answer_that_was_sent_twice_is_undone_at_once(second: str, tmp_path: Path) -> None:
    path, names = tmp_path / "answers.jsonl", ["a", "b"]
    log = AnswerLog(path, names)
    for clip, answer in (("b", "skip"), ("a", "accept"), ("a", second)):
        log.answer(clip, answer)
    assert log.undo() == "a"
    for one in (log, AnswerLog(path, names)):
        assert one.answers == {"b": "skip"}


def test_a_blank_line_is_no_answer(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_bytes(b'\n{"clip": "a", "answer": "accept"}\r\n  \n')
    assert AnswerLog(path, ["a"]).answers == {"a": "accept"}


@pytest.mark.parametrize(
    "damage", [b'{"clip": "\xff"}\n', b"\n{}\n", b'{"clip": 1, "answer": []}\n']
)
@pytest.mark.parametrize("named", [True, False])
def test_a_damaged_log_is_one_sentence(
    damage: bytes, named: bool, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    make_clips(tmp_path / "labels/Pendulum-v1")
    (tmp_path / "labels/Pendulum-v1/answers.jsonl").write_bytes(damage)
    more = ["--labels", "labels/Pendulum-v1"] if named else []
    with pytest.raises(SystemExit, match="2"):
        main(["label", "--env", "Pendulum-v1", *more])
    line = damage.count(b"\n")
    assert f"answers.jsonl, line {line}" in capsys.readouterr().err


def test_a_clip_whose_file_is_gone_is_named(clips: ClipSet) -> None:
    clips.video("clip-0000").unlink()
    app = make_app(clips, clips.answers(), command="", finish=lambda: None)
    with TestClient(app, base_url="http://localhost") as client:
        answer = client.get("/clips/clip-0000.mp4")
        assert answer.status_code == 404
        assert "clip-0000.mp4 is gone" in answer.text


class Overwrites(gym.Env):
    """Writes into the action that it gets, and into the picture that it gave."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012  # as Gymnasium's
    observation_space, action_space = spaces.Box(0, 1, (1,)), spaces.Box(-1, 1, (1,))
    render_mode, picture = "rgb_array", np.zeros((4, 4, 3), np.uint8)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> Any:
        action *= 0.1
        self.picture += 1
        return np.zeros(1, np.float32), 0.0, False, False, {}

    def render(self) -> Any:
        return self.picture


def test_a_clip_keeps_what_was_done_and_seen() -> None:
    model: Any = SimpleNamespace(predict=lambda *_: (np.full((1, 1), 0.5, np.float32), None))
    (clip,) = record_segments(model, DummyVecEnv([Overwrites]), 1, 3, deterministic=True)
    assert clip.actions.tolist() == [[0.5]] * 3
    assert clip.frames[:, 0, 0, 0].tolist() == [0, 1, 2]


def test_one_program_at_a_time_asks_about_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    make_clips(tmp_path / "labels")
    with lock(Path("labels")), pytest.raises(SystemExit):
        main(["label", "--env", "Pendulum-v1", "--labels", "labels"])
    assert "another sb3-pmpo label asks about labels" in capsys.readouterr().err


LIGHTS = """
import gymnasium as gym
import numpy as np
from gymnasium import spaces


class Lights(gym.Env):
    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}
    observation_space, action_space = spaces.Box(0, 1, (1,)), spaces.Box(-1, 1, (1,))

    def __init__(self, render_mode=None, length=5):
        self.render_mode, self.length = render_mode, length

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.n = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.n += 1
        return np.full(1, self.n / 10, np.float32), 0.0, False, self.n == self.length, {}

    def render(self):
        return np.full((32, 48, 3), 20 * self.n, np.uint8)


gym.register("Lights-v0", Lights)
"""


def answer_all(port: int, failures: list[BaseException]) -> None:
    """Give the page's server an answer to each clip, in turn, and finish."""

    def ask(path: str, given: dict[str, Any] | None = None) -> Any:
        data = None if given is None else json.dumps(given).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"http://127.0.0.1:{port}/api/{path}", data, headers)
        with urllib.request.urlopen(request, timeout=300) as response:
            return json.loads(response.read())

    try:
        state = None
        while state is None:  # the socket listens soon, and what asks waits for the server
            with contextlib.suppress(urllib.error.URLError):
                state = ask("state")
            time.sleep(0.05)
        while (clip := state["current"]) is not None:
            answer = "reject" if int(clip[-1]) % 2 else "accept"
            state = ask("answer", {"clip": clip, "answer": answer})
        ask("finish", {})
    except BaseException as error:
        failures.append(error)
        os.kill(os.getpid(), signal.SIGINT)


def test_from_a_policy_to_clips_to_the_command_that_learns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command is run as it is printed."""
    (tmp_path / "sb3_pmpo_lights.py").write_text(LIGHTS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    train = ["train", "--env", "Lights-v0", "--gym-packages", "sb3_pmpo_lights", "-n", "20"]
    train += ["--env-kwargs", "length:10"]
    tiny = ["policy_kwargs:dict(net_arch=[8])", "batch_size:8", "buffer_size:100"]
    assert main([*train, "--eval-freq", "-1", "--device", "cpu", "--hyperparams", *tiny]) == 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    failures: list[BaseException] = []
    asks = threading.Thread(target=answer_all, args=(port, failures), daemon=True)
    asks.start()
    these = ["label", "--env", "Lights-v0", "--clips", "5", "--length", "4", "--device", "cpu"]
    capsys.readouterr()
    assert main([*these, "--port", str(port)]) == 0
    asks.join()
    assert not failures
    printed = capsys.readouterr().out
    assert "accept: 3, reject: 2, skip: 0" in printed
    clips = read_clips(Path("labels/Lights-v0"))
    lengths = [4, 4, 2, 4, 4]  # an episode has ten steps, and no clip goes on in the next
    assert [rows.stop - rows.start for rows in clips.dataset().episodes()] == lengths
    first = clips.dataset().rows(np.arange(10)).observations
    np.testing.assert_allclose(first[:, 0], np.arange(10) / 10)
    reader = FFMPEG_VideoReader(str(clips.video("clip-0001")))  # of the steps 4 to 7
    shown = [
        float(frame.mean()) for frame in (reader.lastread, *(reader.read_frame() for _ in "123"))
    ]
    for pipe in (reader.proc.stdout, reader.proc.stderr):
        pipe.close()  # moviepy leaves them open where ffmpeg has ended by itself
    reader.close()
    np.testing.assert_allclose(shown, [80, 100, 120, 140], atol=3)
    command = shlex.split(printed.rpartition("Learn from the answers with:")[2])
    assert command[0] == "sb3-pmpo"
    assert command[command.index("--gym-packages") + 1] == "sb3_pmpo_lights"  # as another process
    assert command[command.index("--env-kwargs") + 1] == "length:10"
    assert main(command[1:]) == 0
    learned = PMPO.load(tmp_path / "logs/pmpo/Lights-v0_2/Lights-v0.zip", device="cpu")
    assert learned.num_timesteps == 300
    # What is answered stays as it is: the next clips are of the policy that has learned from it.
    assert _unanswered(Path("labels/Lights-v0")) == Path("labels/Lights-v0_2")
    other = ["label", "--env", "Lights-v0", "--labels", "labels/Lights-v0", "--dataset", "other"]
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(other)
    assert "give another folder with --labels" in capsys.readouterr().err


def test_arguments_of_the_environment_are_words_and_no_options(clips: ClipSet) -> None:
    given = {"name": "two words", "reach": [1, 2.5]}
    clips.about["env_kwargs"] = shlex.join(as_words(given))
    words = shlex.split(learning_command(clips))
    parser = argparse.ArgumentParser()
    parser.add_argument("--env-kwargs", nargs="+", action=KeyValues)
    assert parser.parse_args(words[words.index("--env-kwargs") :]).env_kwargs == given
    clips.about["env_kwargs"] = "size:3 --trust"  # of a stranger's folder
    assert not {"--env-kwargs", "--trust"} & {*shlex.split(learning_command(clips))}


@pytest.mark.parametrize("there", [False, True], ids=["new", "there"])
@pytest.mark.parametrize(
    "wrong", [("-f", "nowhere"), ("--dataset", "nowhere")], ids=["no run", "no data set"]
)
def test_a_refused_command_leaves_nothing(
    there: bool, wrong: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if there:
        Path("mine").mkdir()
        Path("mine/notes.txt").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit):
        main(
            ["label", "--env", "Pendulum-v1", "--labels", "mine/clips" if there else "a/b", *wrong]
        )
    with pytest.raises(SystemExit):
        main(["label", "--env", "Pendulum-v1", "--labels", "mine" if there else "a", *wrong])
    assert sorted(tmp_path.rglob("*")) == before


def test_ctrl_c_ends_with_the_command_that_learns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt  # as uvicorn does again after its own end

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("uvicorn.Server.run", interrupted)
    make_clips(tmp_path / "labels").answers().answer("clip-0000", "accept")
    assert main(["label", "--env", "Pendulum-v1", "--labels", "labels"]) == 0
    printed = capsys.readouterr().out
    assert "accept: 1, reject: 0, skip: 0" in printed
    assert "Learn from the answers with:\n  sb3-pmpo offline --env Toy --labels labels" in printed


@pytest.mark.parametrize(
    ("pictures", "newest"),
    [
        (np.arange(9)[:, None, None] * np.ones((9, 64, 64)), [6, 7, 8]),
        (np.arange(4)[:, None, None] * np.ones((4, 84, 84)), [3, 3, 3]),
        (np.arange(12) * np.ones((84, 84, 12)), [9, 10, 11]),
        (np.arange(1) * np.ones((84, 84, 1)), [0, 0, 0]),
    ],
)
def test_of_stacked_pictures_the_newest_is_shown(pictures: np.ndarray, newest: list[int]) -> None:
    shape = pictures.shape
    data = LabelledDataset(
        np.repeat(pictures[None].astype(np.uint8), 4, 0), np.zeros((4, 1), np.float32),
        observation_space=spaces.Box(0, 255, shape, np.uint8), action_space=DONE,
    )  # fmt: skip
    (segment,) = segments_of(data, 1, 4)
    assert segment.frames.shape[-1] == 3
    assert segment.frames.shape[1] >= 240
    assert segment.frames[0, 0, 0].tolist() == newest
    assert (segment.frames == segment.frames[0, 0, 0]).all()


def test_a_late_answer_leaves_out_what_is_too_short(tmp_path: Path) -> None:
    clips = make_clips(tmp_path / "labels")  # of four steps
    clips.answers().answer("clip-0000", "accept")
    assert len(clips.feedback(delay=3)) == 1
    assert len(clips.feedback(delay=4)) == 0


def test_two_pages_of_one_host_have_two_tokens(clips: ClipSet) -> None:
    one, _ = client(clips, "first", base_url="http://robot:8000")
    two, _ = client(clips, "second", base_url="http://robot:8001")
    two.cookies = one.cookies  # as a browser has it
    assert one.get("/?token=first").status_code == 200
    assert two.get("/?token=second").status_code == 200
    assert one.get("/api/state").status_code == two.get("/api/state").status_code == 200


def test_the_page_leaves_the_logs_of_others_alone(clips: ClipSet) -> None:
    closed = []

    class Theirs(logging.Handler):
        def close(self) -> None:
            closed.append(self)
            super().close()

    theirs = Theirs()
    server, bound, _ = _make_server(clips, "127.0.0.1", 0, "learn")
    bound.close()
    assert server.config.log_level == "warning"
    assert theirs not in closed
