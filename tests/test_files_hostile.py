"""Files that somebody else made: each of these would leave a mark if it ran."""

from __future__ import annotations

import base64
import functools
import io
import json
import operator
import os
import pickle
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.vec_env import VecNormalize
from toys import Toy, small, toys

from sb3_pmpo import PMPO
from sb3_pmpo.core.labels import top_k
from sb3_pmpo.policies import MlpPolicy
from sb3_pmpo.storage import containers, environment_state, pickles
from sb3_pmpo.storage.checkpoints import MANIFEST, read_checkpoint
from sb3_pmpo.storage.pickles import Pickled, UntrustedFileError
from sb3_pmpo.storage.statistics import load_statistics, save_statistics


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


@pytest.fixture(autouse=True)
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "settings" / "key"
    monkeypatch.setenv(pickles.KEY_VARIABLE, str(path))
    return path


@pytest.fixture(scope="module")
def model() -> Iterator[PMPO]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(environment_state, "_ADAPTERS", {})
        environment_state.register_environment(Toy)
        yield small(Toy()).learn(25)


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "mark"


def rewrite(path: Path, changed: dict[str, Callable[[bytes], bytes]]) -> None:
    """Change entries of a zip file."""
    with zipfile.ZipFile(path) as old:
        entries = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w") as new:
        for name in entries.keys() | changed.keys():
            entry = entries.get(name, b"")
            new.writestr(name, changed[name](entry) if name in changed else entry)


def set_item(name: str, value: Any) -> dict[str, Callable[[bytes], bytes]]:
    """Set an item of the ``data`` of a model."""
    return {"data": lambda entry: json.dumps(json.loads(entry) | {name: value}).encode()}


def serialized(value: Any, **more: str) -> dict[str, str]:
    content = value if isinstance(value, bytes) else pickle.dumps(value)
    return {":type:": "x", ":serialized:": base64.b64encode(content).decode(), **more}


def torch_bytes(value: Any) -> bytes:
    file = io.BytesIO()
    th.save(value, file)
    return file.getvalue()


# ------------------------------------------------------------------ models

ITEMS = ["policy_class", "learning_rate", "observation_space", "_last_obs", "nonsense"]


@pytest.mark.parametrize("item", ITEMS)
def test_a_pickle_in_a_model_does_not_run(
    item: str, model: PMPO, tmp_path: Path, mark: Path
) -> None:
    path = tmp_path / "model.zip"
    model.save(path)
    rewrite(path, set_item(item, serialized(Touch(mark))))
    with pytest.raises(UntrustedFileError, match=rf"{item} holds a pickle .*posix\.mkdir.*trust"):
        PMPO.load(path)
    assert not mark.exists()
    PMPO.load(path, custom_objects={item: getattr(model, item, None)})
    assert not mark.exists()
    with pytest.raises(Exception):  # noqa: B017, PT011  # what it made is no argument
        PMPO.load(path, trust=True).learn(1)
    assert mark.exists()  # so it does run where it is allowed to


@pytest.mark.parametrize("digest", ["", "0" * 64, "another user's", "of another pickle"])
def test_a_digest_that_is_not_of_the_user_and_the_pickle_is_worth_nothing(
    digest: str, model: PMPO, tmp_path: Path, mark: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, content = tmp_path / "model.zip", pickle.dumps(Touch(mark))
    model.save(path)
    if digest == "of another pickle":
        digest = pickles.dump(lambda progress: progress).digest
    if digest == "another user's":
        with monkeypatch.context() as other:
            other.setenv(pickles.KEY_VARIABLE, str(tmp_path / "other"))
            key = pickles._make_key()
            assert key is not None
            digest = pickles._digest(key, content)
    rewrite(path, set_item("learning_rate", serialized(content, **{":digest:": digest})))
    with pytest.raises(UntrustedFileError, match="that was changed since"):
        PMPO.load(path)
    assert not mark.exists()


@pytest.mark.parametrize("entry", ["policy.pth", "actor.optimizer.pth", "pytorch_variables.pth"])
def test_weights_that_are_a_program_do_not_run(
    entry: str, model: PMPO, tmp_path: Path, mark: Path
) -> None:
    path = tmp_path / "model.zip"
    model.save(path)
    rewrite(path, {entry: lambda _: torch_bytes(Touch(mark))})
    with pytest.raises(UntrustedFileError, match="not only numbers"):
        PMPO.load(path)
    with pytest.raises(pickle.UnpicklingError, match="mkdir"):
        model.set_parameters(str(path))
    assert not mark.exists()


NAMED = [
    {":name:": "os:mkdir"},
    {":name:": "sb3_pmpo.core.labels:th.serialization.os.mkdir"},
    {":name:": "sb3_pmpo.envs:make_env"},
    {":object:": ["subprocess:Popen", {}]},
    {":object:": ["torch.nn.modules.activation:ReLU", {}]},
    {":record:": ["os:mkdir", ["mark"]]},
    {":member:": ["os:environ", "HOME"]},
    {":array:": ["O", [1], ["x"]]},
    {":generator:": {"bit_generator": "os.mkdir"}},
    {":unheard of:": 1},
]


@pytest.mark.parametrize("value", NAMED, ids=str)
def test_names_that_are_not_listed_are_not_looked_up(
    value: Any, model: PMPO, tmp_path: Path
) -> None:
    path = tmp_path / "model.zip"
    model.save(path)
    rewrite(path, set_item("labeller", value))
    with pytest.raises(ValueError, match="the file"):
        PMPO.load(path, trust=True)  # trust is for pickles


def test_a_policy_alone_does_not_run(model: PMPO, tmp_path: Path, mark: Path) -> None:
    path = str(tmp_path / "policy")
    model.policy.save(path)
    assert MlpPolicy.load(path).net_arch == [16]
    th.save({"state_dict": Touch(mark), "data": "{}"}, path)
    with pytest.raises(UntrustedFileError, match=r"mkdir.*trust=True"):
        MlpPolicy.load(path)
    told = json.dumps({"observation_space": serialized(Touch(mark))})
    th.save({"state_dict": {}, "data": told}, path)
    with pytest.raises(UntrustedFileError, match=r"observation_space .*posix\.mkdir"):
        MlpPolicy.load(path)
    assert not mark.exists()


# ------------------------------------------------------------------ buffers and statistics


class Call:
    """Calls a function with arguments when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def evil(mark: Path) -> dict[str, bytes]:
    """Pickles that run something, in the ways that are known."""
    command = f"__import__('os').mkdir({str(mark)!r})"
    dotted = b"\x8c\x15sb3_pmpo.core.samples\x8c\x0bth.os.mkdir\x93"  # a name with dots
    return {
        "mkdir": pickle.dumps(Touch(mark)),
        "eval": pickle.dumps(Call(eval, command)),
        "exec": pickle.dumps(Call(exec, command)),
        "getattr": pickle.dumps(Call(getattr, top_k, "__call__")),
        "partial": pickle.dumps(Call(functools.partial, os.mkdir, str(mark))),
        "methodcaller": pickle.dumps(Call(operator.methodcaller, "x")),
        "lambda": cloudpickle.dumps(lambda: os.mkdir(mark)),
        "protocol 0": pickle.dumps(Touch(mark), 0),
        "inst": f"(S{str(mark)!r}\nios\nmkdir\n.".encode(),
        "dotted": b"\x80\x04" + dotted + b".",
        "nested": pickle.dumps([np.zeros(3), {"a": (Touch(mark),)}]),
        "objects": pickle.dumps(np.array([Touch(mark), 1], object)),
        "torch": pickle.dumps(Call(th.load, str(mark))),
        "storage": pickle.dumps(Call(th.storage._load_from_bytes, b"x")),
        "a class of ours": pickle.dumps(Call(MlpPolicy, 1, 2, 3)),
        "broken": pickle.dumps(Touch(mark))[:-4],
        "nothing": b"",
        "persistent": b"\x80\x04\x8c\x01xQ.",
    }


@pytest.mark.parametrize("name", evil(Path("x")))
@pytest.mark.parametrize("kind", ["buffer", "statistics"])
def test_a_pickle_in_the_place_of_a_buffer_or_statistics_does_not_run(
    name: str, kind: str, model: PMPO, tmp_path: Path, mark: Path
) -> None:
    path, content = tmp_path / "file.pkl", evil(mark)[name]
    load: Callable[[], Any] = lambda: model.load_replay_buffer(path)  # noqa: E731
    if kind == "statistics":
        load = lambda: load_statistics(path, toys(1))  # noqa: E731
    path.write_bytes(content)
    refused = (UntrustedFileError, "trust=True")
    kind_of_error, said = (ValueError, "is empty") if name == "nothing" else refused
    with pytest.raises(kind_of_error, match=said):
        load()
    with zipfile.ZipFile(path, "w") as archive:  # and as our own files have them
        header = {"sb3_pmpo": "replay buffer" if kind == "buffer" else "VecNormalize"}
        archive.writestr("header.json", json.dumps(header | {"digest": "0" * 64}))
        archive.writestr("pickle", content)
    with pytest.raises(kind_of_error, match=said):
        load()
    assert not mark.exists()


def test_a_pickle_cannot_change_a_class() -> None:
    # BUILD with (state, slots) sets attributes of whatever is on the stack.
    changed = b"\x80\x04\x8c\x14sb3_pmpo.core.labels\x8c\x05top_k\x93N}\x8c\x01kK\x05s\x86b."
    assert pickle.loads(changed) is top_k  # so it would have been
    assert top_k.k == 5
    del top_k.k
    with pytest.raises(UntrustedFileError, match=r"names sb3_pmpo\.core\.labels\.top_k"):
        pickles.load(Pickled(changed, ""), "it")
    assert "k" not in vars(top_k)


def test_a_column_of_objects_is_not_read(model: PMPO, tmp_path: Path, mark: Path) -> None:
    path, column = tmp_path / "buffer.pkl", io.BytesIO()
    model.save_replay_buffer(path)
    np.save(column, np.array([Touch(mark)], object), allow_pickle=True)
    rewrite(path, {"rewards.npy": lambda _: column.getvalue()})
    with pytest.raises(ValueError, match="allow_pickle=False"):
        model.load_replay_buffer(path)
    assert not mark.exists()


def test_a_buffer_is_not_taken_for_statistics(model: PMPO, tmp_path: Path) -> None:
    model.save_replay_buffer(tmp_path / "buffer.pkl")
    with pytest.raises(ValueError, match="must hold a VecNormalize, but it holds a replay buffer"):
        load_statistics(tmp_path / "buffer.pkl", toys(1))
    (tmp_path / "list.pkl").write_bytes(pickle.dumps([1]))
    with pytest.raises(ValueError, match="must hold a ReplayBuffer"):
        model.load_replay_buffer(tmp_path / "list.pkl")


# ------------------------------------------------------------------ checkpoints


@pytest.mark.parametrize("where", ["model", "state", "buffer", "piece", "outside"])
def test_a_checkpoint_does_not_run(where: str, model: PMPO, tmp_path: Path, mark: Path) -> None:
    folder = tmp_path / "checkpoint"
    model.save_checkpoint(folder)
    found = read_checkpoint(folder)
    if where == "model":
        rewrite(found.path("model"), set_item("learning_rate", serialized(Touch(mark))))
    elif where == "state":

        def change(entry: bytes) -> bytes:
            header = json.loads(entry)
            header["items"]["attributes"] = serialized(Touch(mark))
            return json.dumps(header).encode()

        rewrite(found.path("state"), {"header.json": change})
    elif where == "piece":
        (folder / found.pieces[0]).write_bytes(pickle.dumps(Touch(mark)))
    else:
        manifest = json.loads((folder / MANIFEST).read_text())
        name = "000000025-00000000-buffer.pkl"
        (folder / name).write_bytes(pickle.dumps(Touch(mark)))
        manifest["files"]["buffer"] = name if where == "buffer" else f"../{name}"
        (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"trust=True|holds a pickle|no file of its own"):
        PMPO.load_checkpoint(folder, Toy())
    assert not mark.exists()


def test_plain_files_of_todays_need_no_key(model: PMPO, tmp_path: Path, key: Path) -> None:
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    save_statistics(VecNormalize(toys(1)), tmp_path / "statistics")
    model.save_checkpoint(tmp_path / "checkpoint")
    assert not key.exists()
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert b":serialized:" not in path.read_bytes(), path


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({}, "files must name a model and a state, got None"),
        ({"files": []}, r"files must name a model and a state, got \[\]"),
        ({"files": {"state": "000000005-01234567-x"}}, "files must name a model"),
        ({"files": {"model": 3, "state": "000000005-01234567-x"}}, "it names 3"),
        ({"pieces": None}, "pieces must be a list of files, got None"),
        ({"pieces": [None]}, "it names None"),
        ({"pieces": ["../x"]}, "it names '../x'"),
        ({"step": None}, "step must be a whole number"),
        ({"step": -1}, "step must be a whole number"),
        ({"step": True}, "step must be a whole number"),
    ],
)
def test_a_damaged_manifest_is_named(told: dict[str, Any], said: str, tmp_path: Path) -> None:
    files = {"model": "000000005-01234567-m", "state": "000000005-01234567-s"}
    whole = {"sb3_pmpo": "checkpoint", "step": 5, "files": files, "pieces": []}
    (tmp_path / MANIFEST).write_text(json.dumps(whole))
    assert read_checkpoint(tmp_path).step == 5
    changed = whole | told if told else {"sb3_pmpo": "checkpoint"}
    (tmp_path / MANIFEST).write_text(json.dumps(changed))
    with pytest.raises(ValueError, match=f"{MANIFEST} is damaged: .*{said}.*; resume from another"):
        PMPO.load_checkpoint(tmp_path, Toy())


def test_pieces_need_a_buffer_of_known_size(model: PMPO, tmp_path: Path) -> None:
    model.save_checkpoint(tmp_path)
    found = read_checkpoint(tmp_path)
    state = containers.read(io.BytesIO(found.path("state").read_bytes()), "checkpoint", "it")
    state.items.pop("buffer")
    containers.write(found.path("state"), state)
    with pytest.raises(ValueError, match="does not say how large the replay buffer is"):
        PMPO.load_checkpoint(tmp_path, Toy())


# ---------------------------------------------------------------------- what needs no function


def _text(x: str) -> bytes:
    return b"\x8c" + bytes([len(x)]) + x.encode()


def _named(module: str, name: str) -> bytes:
    return _text(module) + _text(name) + b"\x93"


def _number(n: int) -> bytes:
    return b"J" + n.to_bytes(4, "little")


_OBJECTS = _named("numpy", "dtype") + b"(" + _text("O8") + _number(0) + _number(1) + b"tR"
_FIELDS = (
    _named("numpy", "dtype") + b"(" + _text("V8") + _number(0) + _number(1) + b"tR("
    + _number(4) + _text("|") + b"N(" + _text("a") + b"t}" + _text("a") + _OBJECTS + _number(0)
    + b"\x86s" + _number(8) + _number(1) + _number(0) + b"tb"
)  # fmt: skip
_OVER_BYTES = b"(" + _number(1) + b"\x85" + _OBJECTS + b"C\x08AAAAAAAAt"


@pytest.mark.parametrize(
    "content",
    [
        _named("numpy", "ndarray") + _OVER_BYTES + b"R",
        _named("numpy", "ndarray") + _OVER_BYTES + b"\x81",
        _FIELDS,
        _named("numpy._core.multiarray", "scalar") + b"(" + _FIELDS + b"C\x08AAAAAAAAtR",
    ],
)
def test_no_bytes_of_a_file_become_pointers(content: bytes) -> None:
    """Read as objects they would let a file reach any address."""
    with pytest.raises(UntrustedFileError):
        pickles.load(Pickled(b"\x80\x04" + content + b".", ""), "the file")


def test_a_model_s_file_makes_no_environment(
    model: PMPO, tmp_path: Path, mark: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``module:Id-v0`` imports a module, for which no pickle is needed."""
    (tmp_path / "hostile_env.py").write_text(f"import os\nos.mkdir({str(mark)!r})\n")
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "model.zip"
    model.save(path)
    rewrite(path, set_item("env", "hostile_env:Toy-v0"))
    with pytest.raises(UntrustedFileError, match="names an environment"):
        PMPO.load(path)
    PMPO.load(path, custom_objects={"env": None})
    assert not mark.exists()
