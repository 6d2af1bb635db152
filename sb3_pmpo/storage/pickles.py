"""Pickles: which are loaded, and which only with the user's word.

A pickle is a program, and loading it runs it. Three kinds are loaded: one that this user wrote, as
a digest under the user's own key shows (Jupyter trusts notebooks in this way); one that names
nothing but :mod:`sb3_pmpo.storage.names`, which is what plain files of earlier versions hold; and
any other with ``trust=True``.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import io
import os
import pickle
import pickletools
import secrets
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, ClassVar, NamedTuple

import cloudpickle
import numpy as np

from sb3_pmpo.files import writer
from sb3_pmpo.storage.names import makers, resolve

#: The variable that names the file of the key, in place of the usual one.
KEY_VARIABLE = "SB3_PMPO_KEY"


class UntrustedFileError(ValueError):
    """A file holds a pickle that neither this user wrote nor is known to be harmless."""


class Pickled(NamedTuple):
    """A pickle as a file holds it.

    :param content: the pickle.
    :param digest: under the key of who wrote it; empty if there was no key.
    """

    content: bytes
    digest: str


# ---------------------------------------------------------------------- the user's key


def key_path() -> Path:
    """Return where the user's key is: ``$SB3_PMPO_KEY``, else in the folder of settings."""
    chosen = os.environ.get(KEY_VARIABLE)
    if chosen:
        return Path(chosen)
    settings = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(settings) / "sb3_pmpo" / "key"


def _read_key() -> bytes | None:
    try:
        path = key_path()
        return path.read_bytes() or None
    except (OSError, RuntimeError):  # there is none, or no home
        return None


def _make_key() -> bytes | None:
    """Return the key, made at first use; None where it cannot be kept."""
    key = _read_key()
    if key is not None:
        return key
    try:
        path = key_path()
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        beside = path.with_name(f".{writer()}-{path.name}")
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(32))
        try:
            # Unlike a rename, it leaves the key of a process that was faster.
            with contextlib.suppress(FileExistsError):
                os.link(beside, path)
        finally:
            beside.unlink()
    except (OSError, RuntimeError) as error:
        warnings.warn(
            f"the key that signs your pickles cannot be kept at {key_path()} ({error}), so this "
            f"file will need trust=True: let {KEY_VARIABLE} name a file that can be written",
            stacklevel=2,
        )
        return None
    return _read_key()


#: Before what :func:`sign` signs, so that its digest is of no pickle: none begins so.
_NO_PICKLE = b"sb3_pmpo, no pickle: "


def _digest(key: bytes, content: bytes) -> str:
    return hmac.new(key, content, hashlib.sha256).hexdigest()


# ---------------------------------------------------------------------- writing and reading


def dump(value: Any) -> Pickled:
    """Pickle a value and sign the pickle with the user's key."""
    content = cloudpickle.dumps(value)
    return Pickled(content, sign_pickle(content))


def sign_pickle(content: bytes) -> str:
    """Return the digest of a pickle that this user has just made; empty where there is no key."""
    key = _make_key()
    return "" if key is None else _digest(key, content)


def is_own(pickled: Pickled) -> bool:
    """Say whether this user wrote the pickle, and nobody has changed it since."""
    key = _read_key()
    return key is not None and hmac.compare_digest(_digest(key, pickled.content), pickled.digest)


def sign(content: bytes) -> str:
    """Return a digest of what is no pickle under the user's key; empty where there is no key."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is about pickles
        key = _make_key()
    return "" if key is None else _digest(key, _NO_PICKLE + content)


def is_signed(content: bytes, digest: str) -> bool:
    """Say whether this user gave the content this digest by :func:`sign`."""
    return is_own(Pickled(_NO_PICKLE + content, digest))


#: Whether everything is trusted: a program was called with ``--trust``.
_TRUSTING: ContextVar[bool] = ContextVar("trusting", default=False)


@contextmanager
def trusting(trust: bool = True) -> Iterator[None]:
    """Load any pickle within this context, as with ``trust=True`` wherever it is taken."""
    token = _TRUSTING.set(trust)
    try:
        yield
    finally:
        _TRUSTING.reset(token)


def is_trusting() -> bool:
    """Say whether a program was called with ``--trust``."""
    return _TRUSTING.get()


def load(pickled: Pickled, where: str, *, trust: bool = False) -> Any:
    """Load a pickle of this user's, a harmless one, or any with the user's word.

    :param pickled: with its digest, if the file has one.
    :param where: what it is, for the message.
    :param trust: load it whatever it is.
    :raises UntrustedFileError: saying what is in it and how to allow it.
    :raises ValueError: if it is empty or torn.
    """
    if trust or _TRUSTING.get() or is_own(pickled):
        return pickle.loads(pickled.content)
    try:
        return _Harmless(io.BytesIO(pickled.content)).load()
    except Exception as error:  # a pickle that was tampered with may fail in any way
        if isinstance(error, EOFError) or "truncated" in str(error):
            raise ValueError(f"{where} is damaged: it is empty, or its end is missing") from error
        raise UntrustedFileError(
            f"{where} holds a pickle that you did not write, or that was changed since, and that "
            f"could run any code: it names {', '.join(globals_of(pickled.content)) or 'nothing'}; "
            "if you trust who made it, load it with trust=True (--trust on the command line)"
        ) from error


def globals_of(content: bytes) -> list[str]:
    """List what a pickle names, ``module.name``, without running it."""
    found: dict[str, None] = {}
    texts: list[str] = []  # what was pushed, as far as it is text
    memo: list[str] = []
    try:
        for opcode, argument, _ in pickletools.genops(content):
            if opcode.name in ("GLOBAL", "INST"):
                found[str(argument).replace(" ", ".")] = None
            elif opcode.name == "STACK_GLOBAL":
                found[".".join(texts[-2:])] = None
            elif opcode.name == "MEMOIZE":
                memo.append(texts[-1] if texts else "?")
            elif opcode.name in ("BINGET", "LONG_BINGET") and isinstance(argument, int):
                texts.append(memo[argument] if argument < len(memo) else "?")
            elif isinstance(argument, str):
                texts.append(argument)
    except Exception:  # it ends in the middle, or is no pickle at all
        found["(broken)"] = None
    return list(found)


def _check_dtype_state(dtype: np.dtype, state: Any) -> None:
    """Refuse a state by which a dtype would hold objects without saying so.

    NumPy would then read bytes of the file as pointers. A state is (version, byte order, subarray,
    names, fields, size, alignment, flags, metadata if it has any).
    """
    plain = isinstance(state, tuple) and state[2:5] == (None, None, None)
    if not plain or (dtype.hasobject and state[7:8] != (dtype.flags,)):
        raise pickle.UnpicklingError("a dtype of several fields, or of other flags than its own")


class _Harmless(pickle._Unpickler):
    """Unpickles what names nothing but what is listed, and calls nothing but its makers.

    The one in Python: that in C cannot be kept from setting attributes of classes.
    """

    stack: list[Any]

    def find_class(self, module: str, name: str) -> Any:
        return resolve(f"{module}:{name}")

    def _reduce(self) -> None:
        function, arguments = self.stack[-2:]
        if not any(function is maker for maker in makers()):
            raise pickle.UnpicklingError(f"{function} may not be called")
        if any(isinstance(each, np.dtype) and each.hasobject for each in arguments):
            raise pickle.UnpicklingError("the bytes of a file are no objects")
        del self.stack[-1]
        self.stack[-1] = function(*arguments)

    def _build(self) -> None:
        if isinstance(self.stack[-2], (type, FunctionType, ModuleType)):
            raise pickle.UnpicklingError("a class or a function may not be changed")
        if isinstance(self.stack[-2], np.dtype):
            _check_dtype_state(self.stack[-2], self.stack[-1])
        pickle._Unpickler.dispatch[pickle.BUILD[0]](self)  # type: ignore[arg-type]  # of Python's class, which typeshed calls Unpickler

    @staticmethod
    def _check_new(kind: Any) -> None:
        if kind is np.ndarray:  # over a buffer, of which it reads any bytes as objects
            raise pickle.UnpicklingError("an array is not made in this way")

    def _new(self) -> None:
        self._check_new(self.stack[-2])
        pickle._Unpickler.dispatch[pickle.NEWOBJ[0]](self)  # type: ignore[arg-type]  # as above

    def _new_with_names(self) -> None:
        self._check_new(self.stack[-3])
        pickle._Unpickler.dispatch[pickle.NEWOBJ_EX[0]](self)  # type: ignore[arg-type]  # as above

    def _refuse(self) -> None:
        raise pickle.UnpicklingError("of a kind that no file of ours holds")

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        **pickle._Unpickler.dispatch,
        pickle.REDUCE[0]: _reduce,
        pickle.BUILD[0]: _build,
        pickle.NEWOBJ[0]: _new,
        pickle.NEWOBJ_EX[0]: _new_with_names,
        pickle.INST[0]: _refuse,
        pickle.OBJ[0]: _refuse,
        pickle.EXT1[0]: _refuse,
        pickle.EXT2[0]: _refuse,
        pickle.EXT4[0]: _refuse,
        pickle.PERSID[0]: _refuse,
        pickle.BINPERSID[0]: _refuse,
    }
