"""Python values as JSON, and back, without running anything that the JSON names.

Numbers, text, lists and dictionaries with text for keys are themselves. Everything else is a
dictionary with one key that begins with a colon and says what it is.
"""

from __future__ import annotations

import base64
import enum
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_pmpo.storage.names import is_known, is_stateful, name_of, resolve

#: Puts an array elsewhere and returns the name under which it is found again; None: not this one.
Sink = Callable[[str, np.ndarray], str | None]

_BIT_GENERATORS = ("MT19937", "PCG64", "PCG64DXSM", "Philox", "SFC64")
_SPACES = {
    kind.__name__: kind
    for kind in (
        spaces.Box,
        spaces.Dict,
        spaces.Discrete,
        spaces.MultiBinary,
        spaces.MultiDiscrete,
        spaces.Tuple,
    )
}


class NotPlainError(TypeError):
    """A value that JSON cannot tell: only a pickle can hold it."""


def encode(value: Any, sink: Sink | None = None, path: str = "") -> Any:
    """Turn a value into what JSON can hold.

    :param value: of the types above, or of a class in :mod:`sb3_pmpo.storage.names`.
    :param sink: takes arrays that shall not become text.
    :param path: where the value is, for the sink and for messages.
    :raises NotPlainError: naming what cannot be told.
    """
    kind = type(value)
    if value is None or kind in (bool, int, float, str):
        return value
    if kind is list:
        return _all(value, sink, path)
    if kind is dict:
        return _encode_dict(value, sink, path)
    encoder = _ENCODERS.get(kind)
    if encoder is not None:
        return encoder(value, sink, path)
    return _encode_rest(value, sink, path)


def decode(value: Any, columns: Mapping[str, np.ndarray] | None = None) -> Any:
    """Turn what :func:`encode` made back into the value.

    :param value: as JSON has it.
    :param columns: the arrays that went to the sink, by name.
    :raises ValueError: for what this version does not know.
    """
    if isinstance(value, list):
        return [decode(item, columns) for item in value]
    if not isinstance(value, dict):
        return value
    tag = next(iter(value), "")
    if not tag.startswith(":"):
        return {key: decode(item, columns) for key, item in value.items()}
    decoder = _DECODERS.get(tag)
    if decoder is None:
        raise ValueError(f"the file holds {tag!r}, which this version of sb3_pmpo does not know")
    return decoder(value[tag], columns)


def _all(values: Any, sink: Sink | None, path: str) -> list[Any]:
    return [encode(value, sink, _within(path, i)) for i, value in enumerate(values)]


def _within(path: str, part: object) -> str:
    return f"{path}/{part}" if path else str(part)


def _encode_dict(value: dict, sink: Sink | None, path: str) -> Any:
    if all(type(key) is str and not key.startswith(":") for key in value):
        return {key: encode(item, sink, _within(path, key)) for key, item in value.items()}
    return {":dict:": _pairs(value, sink, path)}


def _pairs(value: dict, sink: Sink | None, path: str) -> list[Any]:
    items = enumerate(value.items())
    return [
        [encode(key, sink, _within(path, f"key{i}")), encode(item, sink, _within(path, i))]
        for i, (key, item) in items
    ]


def _encode_array(value: np.ndarray, sink: Sink | None, path: str) -> Any:
    if value.dtype == object:
        flat = value.ravel().tolist()
        # Hindsight's infos: millions of empty dictionaries, without a step of Python for each.
        if set(map(type, flat)) <= {dict} and not any(flat):
            return {":empty:": list(value.shape)}
        return {":objects:": [list(value.shape), _all(flat, sink, path)]}
    if value.dtype.kind in "SU":
        texts = value.astype("U").ravel().tolist()
        return {":array:": [value.dtype.str, list(value.shape), texts]}
    if value.dtype.kind not in "biuf":
        raise NotPlainError(f"{path}: an array of {value.dtype}")
    name = None if sink is None else sink(path, value)
    if name is not None:
        return {":column:": name}
    entries = value.ravel().tolist()
    if value.size and value.tobytes() == value.flat[0].tobytes() * value.size:
        entries = entries[:1]  # of one value, as most bounds are
    return {":array:": [value.dtype.str, list(value.shape), entries]}


def _decode_array(value: Any, columns: Any) -> np.ndarray:
    dtype, shape, entries = value
    if np.dtype(dtype).kind not in "biufSU":
        raise ValueError(f"the file holds an array of {dtype!r}: only numbers and text are read")
    if len(entries) == 1:
        return np.full(shape, entries[0], dtype)
    return np.array(entries, dtype).reshape(shape)


def _decode_objects(value: Any, columns: Any) -> np.ndarray:
    shape, entries = value
    array = np.empty(len(entries), object)
    for i, entry in enumerate(entries):
        array[i] = decode(entry, columns)
    return array.reshape(shape)


def _decode_empty(shape: list[int], columns: Any) -> np.ndarray:
    array = np.empty(shape, object)
    for index in np.ndindex(*shape):
        array[index] = {}
    return array


def _encode_generator(value: np.random.Generator, sink: Sink | None, path: str) -> Any:
    state = value.bit_generator.state
    if state["bit_generator"] not in _BIT_GENERATORS:
        raise NotPlainError(f"{path}: a generator over {state['bit_generator']}")
    return {":generator:": encode(state, None, path)}


def _decode_generator(value: Any, columns: Any) -> np.random.Generator:
    state = decode(value, columns)
    name = state["bit_generator"]
    if name not in _BIT_GENERATORS:
        raise ValueError(f"the file holds a generator over {name!r}, which is not NumPy's")
    bits = getattr(np.random, name)(0)
    bits.state = state
    return np.random.Generator(bits)


def _decode_random_state(value: Any, columns: Any) -> np.random.RandomState:
    random = np.random.RandomState(0)
    random.set_state(decode(value, columns))
    return random


def _space_arguments(space: Any) -> dict[str, Any]:
    if isinstance(space, spaces.Box):
        return {"low": space.low, "high": space.high, "dtype": space.dtype}
    if isinstance(space, spaces.Discrete):
        return {"n": int(space.n), "start": int(space.start)}
    if isinstance(space, spaces.MultiDiscrete):
        return {"nvec": space.nvec, "start": space.start, "dtype": space.dtype}
    if isinstance(space, spaces.MultiBinary):
        return {"n": space.n if isinstance(space.n, int) else list(space.n)}
    parts = space.spaces
    return {"spaces": OrderedDict(parts) if isinstance(space, spaces.Dict) else tuple(parts)}


def _encode_space(space: Any, sink: Sink | None, path: str) -> Any:
    told = {name: encode(value, None, path) for name, value in _space_arguments(space).items()}
    random = encode(space._np_random, None, path)
    return {":space:": [type(space).__name__, told, random]}


def _decode_space(value: Any, columns: Any) -> Any:
    name, arguments, random = value
    decoded = {key: decode(item, columns) for key, item in arguments.items()}
    space: Any = _SPACES[name](**decoded)
    space._np_random = decode(random, columns)
    return space


def _encode_rest(value: Any, sink: Sink | None, path: str) -> Any:
    """Tell what is known by its name, and instances of known classes."""
    kind = type(value)
    if isinstance(value, np.dtype):
        return {":dtype:": value.str}
    if isinstance(value, np.generic) and value.dtype.kind in "biuf":
        return {":scalar:": [value.dtype.str, value.item()]}
    if isinstance(value, type) or kind in _FUNCTIONS:
        if is_known(value) and resolve(name_of(value)) is value:
            return {":name:": name_of(value)}
    elif is_stateful(kind):
        name = name_of(kind)
        if isinstance(value, enum.Enum):
            return {":member:": [name, value.name]}
        if isinstance(value, tuple):
            return {":record:": [name, _all(value, sink, path)]}
        return {":object:": [name, _encode_dict(state_of(value), sink, path)]}
    raise NotPlainError(f"{path or 'it'}: {kind.__module__}.{kind.__qualname__}")


_FUNCTIONS = (type(encode), type(len))


def state_of(value: Any) -> dict[str, Any]:
    """Return the attributes by which an instance is told, as its class would have it pickled."""
    own = getattr(type(value), "__getstate__", None)
    state = own(value) if own is not None else vars(value)
    return dict(state) if state else {}  # None of one without attributes


def _decode_object(value: Any, columns: Any) -> Any:
    kind = _class(value[0])
    made = kind.__new__(kind)
    state = decode(value[1], columns)
    setter = getattr(kind, "__setstate__", None)
    if setter is not None:
        setter(made, state)
    else:
        vars(made).update(state)
    return made


def _class(name: str) -> Any:
    kind = _resolve(name)
    if not isinstance(kind, type) or not is_stateful(kind):
        raise ValueError(f"the file tells an instance of {name}, which is no class of data")
    return kind


def _resolve(name: str) -> Any:
    try:
        return resolve(name)
    except KeyError as error:
        raise ValueError(
            f"the file names {name}, which is neither sb3_pmpo's nor registered: if it is yours, "
            "call sb3_pmpo.storage.names.register with it before loading"
        ) from error


_ENCODERS: dict[type, Callable[[Any, Sink | None, str], Any]] = {
    tuple: lambda v, sink, path: {":tuple:": _all(v, sink, path)},
    deque: lambda v, sink, path: {":deque:": [_all(v, sink, path), v.maxlen]},
    set: lambda v, sink, path: {":set:": _all(sorted(v, key=repr), sink, path)},
    OrderedDict: lambda v, sink, path: {":ordered:": _pairs(v, sink, path)},
    bytes: lambda v, sink, path: {":bytes:": base64.b64encode(v).decode()},
    np.ndarray: _encode_array,
    np.random.Generator: _encode_generator,
    np.random.RandomState: lambda v, sink, path: {
        ":random_state:": encode(v.get_state(legacy=False), None, path)
    },
    th.device: lambda v, sink, path: {":device:": str(v)},
    **dict.fromkeys(_SPACES.values(), _encode_space),
}

_DECODERS: dict[str, Callable[[Any, Any], Any]] = {
    ":dict:": lambda v, c: {decode(key, c): decode(item, c) for key, item in v},
    ":tuple:": lambda v, c: tuple(decode(v, c)),
    ":deque:": lambda v, c: deque(decode(v[0], c), v[1]),
    ":set:": lambda v, c: set(decode(v, c)),
    ":ordered:": lambda v, c: OrderedDict((decode(key, c), decode(item, c)) for key, item in v),
    ":bytes:": lambda v, c: base64.b64decode(v),
    ":array:": _decode_array,
    ":column:": lambda v, c: c[v],
    ":objects:": _decode_objects,
    ":empty:": _decode_empty,
    ":generator:": _decode_generator,
    ":random_state:": _decode_random_state,
    ":device:": lambda v, c: th.device(v),
    ":dtype:": lambda v, c: np.dtype(v),
    ":scalar:": lambda v, c: np.dtype(v[0]).type(v[1]),
    ":space:": _decode_space,
    ":name:": lambda v, c: _resolve(v),
    ":member:": lambda v, c: _class(v[0])[v[1]],
    ":record:": lambda v, c: _class(v[0])(*decode(v[1], c)),
    ":object:": _decode_object,
}
