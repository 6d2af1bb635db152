"""Models and policies: SB3's format, with JSON for all that is plain.

A model's file stays one that SB3's ``load_from_zip_file`` reads. What only a pickle can hold is
where SB3 has it, with a digest beside it.
"""

from __future__ import annotations

import base64
import io
import json
import pickle
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import torch as th
from stable_baselines3.common.policies import BaseModel
from stable_baselines3.common.save_util import open_path, save_to_zip_file
from stable_baselines3.common.utils import get_device

from sb3_pmpo.files import interrupts_pass
from sb3_pmpo.storage import pickles
from sb3_pmpo.storage.pickles import Pickled, UntrustedFileError
from sb3_pmpo.storage.plain import NotPlainError, Sink, decode, encode

_SERIALIZED, _DIGEST = ":serialized:", ":digest:"


def encode_items(items: Mapping[str, Any], sink: Sink | None = None) -> dict[str, Any]:
    """Turn each item into JSON, or into a signed pickle within it if it cannot be."""
    return {name: _encode_item(name, value, sink) for name, value in items.items()}


def _encode_item(name: str, value: Any, sink: Sink | None) -> Any:
    try:
        return encode(value, sink, name)
    except (NotPlainError, RecursionError):
        pickled = pickles.dump(value)
    return {
        ":type:": str(type(value)),  # as SB3 has it, for people who read it
        _SERIALIZED: base64.b64encode(pickled.content).decode(),
        _DIGEST: pickled.digest,
    }


def decode_items(
    encoded: Mapping[str, Any],
    where: str,
    *,
    trust: bool = False,
    replaced: Mapping[str, Any] | None = None,
    columns: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Turn what :func:`encode_items` made back into the items, and so what SB3 itself wrote.

    :param encoded: as JSON has it.
    :param where: the file, for messages.
    :param trust: load any pickle.
    :param replaced: items to take in the place of those in the file, which are not looked at.
    :param columns: the arrays that went to the sink, by name.
    :raises UntrustedFileError: for a pickle that is neither this user's nor harmless.
    """
    items = {}
    for name, value in encoded.items():
        if replaced is not None and name in replaced:
            items[name] = replaced[name]
        elif not (isinstance(value, dict) and _SERIALIZED in value):
            items[name] = decode(value, columns)
        else:
            content = base64.b64decode(value[_SERIALIZED])
            pickled = Pickled(content, str(value.get(_DIGEST, "")))
            try:
                items[name] = pickles.load(pickled, f"{where}: {name}", trust=trust)
            except (RuntimeError, TypeError, AttributeError) as error:  # as SB3 does
                warnings.warn(
                    f"Could not deserialize object {name}. Consider using `custom_objects` argument"
                    f" to replace this object.\nException: {error}",
                    stacklevel=2,
                )
    return items


# ---------------------------------------------------------------------- models


def save_model(
    file: str | Path | io.BufferedIOBase,
    items: Mapping[str, Any],
    parameters: dict[str, Any],
    variables: dict[str, Any],
) -> None:
    """Write a model.

    :param file: where to.
    :param items: its attributes.
    :param parameters: state dictionaries, by name.
    :param variables: other things of torch's, by name.
    """
    with interrupts_pass():
        save_to_zip_file(file, encode_items(items), parameters, variables)


class ModelFile:
    """A model's file, read once.

    :param path: of the file, with SB3's suffix or without, or an open file.
    :param replaced: SB3's ``custom_objects``, which go before those in the file.
    :param trust: load any pickle.
    :raises UntrustedFileError: for a pickle that is neither this user's nor harmless.
    :raises ValueError: if it is no such file.
    """

    def __init__(
        self,
        path: str | Path | io.BufferedIOBase,
        replaced: Mapping[str, Any] | None,
        *,
        trust: bool,
    ) -> None:
        if replaced is not None and not isinstance(replaced, dict):
            raise ValueError(f"custom_objects must be a dict or None, got {replaced!r}")
        where = str(path) if isinstance(path, (str, Path)) else "the file"
        content = read_bytes(path, "zip")
        try:
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                told = json.loads(archive.read("data"))
        except KeyError as error:  # of a torn one, weights alone may look like an archive
            raise ValueError(f"{where} is torn, or not a model: it has no data") from error
        except zipfile.BadZipFile as error:
            raise ValueError(f"{where} is not a model: it wasn't a zip-file") from error
        #: All that the file's JSON has, so that SB3 unpickles nothing of it.
        self.items = decode_items(told, where, trust=trust, replaced=replaced)
        if isinstance(self.items.get("env"), str) and "env" not in (replaced or {}):
            raise UntrustedFileError(
                f"{where} names an environment to make, {self.items['env']!r}, which no save "
                "writes and which could import any module: if you trust the rest, load it with "
                "custom_objects={'env': None}"
            )
        self.content = io.BytesIO(_without(content, told.keys() - self.items.keys()))

    def parameter_names(self) -> set[str]:
        """Name the policy's parameters; none where they cannot be read, which SB3 will say."""
        with zipfile.ZipFile(self.content) as archive:
            try:
                with archive.open("policy.pth") as file:
                    return set(th.load(file, map_location="meta", weights_only=True))
            except (KeyError, RuntimeError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile):
                return set()


def _without(content: bytes, names: set[str]) -> bytes:
    """Leave out items that could not be loaded: SB3 would try again."""
    if not names:
        return content
    return _changed(content, lambda told: {k: x for k, x in told.items() if k not in names})


def signed(content: bytes) -> bytes:
    """Sign the pickles in a model that SB3 has just saved for this user."""

    def sign(told: dict[str, Any]) -> dict[str, Any]:
        for item in told.values():
            if isinstance(item, dict) and _SERIALIZED in item:
                item[_DIGEST] = pickles.sign_pickle(base64.b64decode(item[_SERIALIZED]))
        return told

    return _changed(content, sign)


@interrupts_pass()
def _changed(content: bytes, change: Callable[[dict[str, Any]], dict[str, Any]]) -> bytes:
    """Return a model with other items."""
    result = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(result, "w") as new:
        for name in dict.fromkeys(old.namelist()):
            entry = old.read(name)
            if name == "data":
                entry = json.dumps(change(json.loads(entry))).encode()
            new.writestr(name, entry)
    return result.getvalue()


def read_bytes(path: str | Path | io.BufferedIOBase, suffix: str) -> bytes:
    """Read a whole file; its suffix may be left out, as with SB3."""
    file = open_path(path, "r", suffix=suffix)
    try:
        file.seek(0)
        return file.read()
    finally:
        if isinstance(path, (str, Path)):
            file.close()


# ---------------------------------------------------------------------- policies alone


class SavesAlone(BaseModel):
    """A policy, or a part of one, whose ``save`` and ``load`` need no pickle for what is plain."""

    def save(self, path: str) -> None:
        """Save it alone.

        :param path: of the file.
        """
        told = json.dumps(encode_items(self._get_constructor_parameters()))
        th.save({"state_dict": self.state_dict(), "data": told}, path)

    @classmethod
    def load(cls, path: str, device: th.device | str = "auto", *, trust: bool = False) -> Self:
        """Load what :meth:`save` saved.

        :param path: of the file.
        :param device: where it shall be.
        :param trust: load any pickle that the file holds.
        :raises UntrustedFileError: for a pickle that is neither this user's nor harmless.
        """
        saved = _load_torch(path, get_device(device), trust)
        told = saved["data"]
        if isinstance(told, str):
            told = decode_items(json.loads(told), str(path), trust=trust)
        model: Any = cls(**told)
        model.load_state_dict(saved["state_dict"])
        model.to(get_device(device))
        return model


def _load_torch(path: str, device: th.device, trust: bool) -> Any:
    if trust:
        return th.load(path, map_location=device, weights_only=False)
    try:
        return th.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        raise refused_weights(str(path), path) from error


def refused_weights(where: str, file: Any) -> UntrustedFileError:
    """Say why a file of torch's is refused: it names what is neither a tensor nor a number.

    :param where: what it is, for the message.
    :param file: the file, to read what it names.
    """
    try:
        found = ", ".join(th.serialization.get_unsafe_globals_in_checkpoint(file))
    except (RuntimeError, ValueError, EOFError, pickle.UnpicklingError):  # it is damaged, too
        found = "what cannot be read"
    return UntrustedFileError(
        f"{where} holds a pickle that could run any code: it names {found}; if you trust who made "
        "it, load it with trust=True"
    )
