"""Arguments that are objects, written as text: ``labeller="top_k(2)"``.

A string is read by its syntax tree, as public names with literal arguments. None is evaluated.
"""

from __future__ import annotations

import ast
import difflib
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

from stable_baselines3.common.buffers import NStepReplayBuffer
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from sb3_pmpo.core import labels, losses, samples
from sb3_pmpo.online import exploration
from sb3_pmpo.replay import PrioritizedHerReplayBuffer, PrioritizedReplayBuffer


class Vocabulary(NamedTuple):
    """The names that a string may hold.

    :param example: for the messages.
    :param makers: called with arguments, literal or of these names.
    :param values: taken as they are.
    :param outermost: which makers the string as a whole may be a call of; empty for anything.
    """

    example: str
    makers: Mapping[str, Any]
    values: Mapping[str, Any]
    outermost: Sequence[str] = ()


def _of(module: ModuleType, *names: str) -> dict[str, Any]:
    return {name: getattr(module, name) for name in names}


_LABELLERS = _of(labels, "advantage", "best_worst", "boltzmann", "threshold", "top_k")
_BASELINES = _of(labels, "mean_score", "state_value")
_NORMALISATIONS = _of(samples, "mean_over_samples", "mean_per_set")
_NOISES = _of(exploration, "pink_noise", "pink_or_white_noise")
_BUFFERS = {
    cls.__name__: cls
    for cls in (
        HerReplayBuffer,
        NStepReplayBuffer,
        PrioritizedReplayBuffer,
        PrioritizedHerReplayBuffer,
    )
}

#: Arguments that are objects, which a configuration names.
OBJECTS = {
    "labeller": Vocabulary(
        "top_k(2)",
        _LABELLERS | _of(labels, "quantile"),
        _BASELINES | _NORMALISATIONS,
        [*_LABELLERS],
    ),
    "loss": Vocabulary("ipo_loss", {}, _of(losses, "dpo_loss", "ipo_loss")),
    "exploration_noise": Vocabulary("pink_noise", {}, _NOISES),
    "replay_buffer_class": Vocabulary("HerReplayBuffer", {}, _BUFFERS),
}


def parse(name: str, text: str, vocabulary: Vocabulary) -> Any:
    """Read a string of names and literals.

    :param name: of the setting, for the message.
    :raises ValueError: if there is anything else in it, naming what is known.
    """
    try:
        node = ast.parse(text.strip(), mode="eval").body
        if vocabulary.outermost:
            outermost = ast.unparse(node.func) if isinstance(node, ast.Call) else None
            _check_known(outermost or text, vocabulary.outermost)
            if outermost is None:
                raise ValueError(f"{text} is called with arguments, {EXAMPLES[text.strip()]}")
        return _read(node, vocabulary)
    except (SyntaxError, TypeError, ValueError) as error:
        raise ValueError(
            f"{name} must be names of sb3_pmpo with literal arguments, such as "
            f"{vocabulary.example!r}, got {text!r}: {getattr(error, 'msg', error)}"
        ) from error


def _read(node: ast.expr, names: Vocabulary) -> Any:
    match node:
        case ast.Name() | ast.Attribute():
            name = ast.unparse(node)
            _check_known(name, [*names.values])
            return names.values[name]
        case ast.Call():
            name = ast.unparse(node.func)
            _check_known(name, [*names.makers])
            if any(isinstance(each, ast.Starred) for each in node.args):
                raise ValueError("* unpacks what is no literal")
            arguments = [_read(each, names) for each in node.args]
            keywords = {str(each.arg): _read(each.value, names) for each in node.keywords}
            return names.makers[name](*arguments, **keywords)
        case ast.List() | ast.Tuple():
            entries = [_read(each, names) for each in node.elts]
            return tuple(entries) if isinstance(node, ast.Tuple) else entries
        case ast.Dict():
            keys = [ast.literal_eval(key) for key in node.keys if key is not None]
            return dict(zip(keys, [_read(each, names) for each in node.values], strict=True))
    try:
        return ast.literal_eval(node)
    except ValueError as error:
        raise ValueError(f"{ast.unparse(node)!r} is no name and no literal") from error


def _check_known(name: str, known: Sequence[str]) -> None:
    if name in known:
        return
    close = difflib.get_close_matches(name.rpartition(".")[2], known, n=1, cutoff=0.6)
    hint = f", did you mean {close[0]}?" if close else ""
    listed = ", ".join(known) if len(known) < 20 else "dict, and classes of nn and th.optim"
    raise ValueError(f"{name!r} is not known here{hint} (known: {listed or 'no call'})")


def as_object(name: str, value: Any) -> Any:
    """Return what an argument means: an object, or the text that names one.

    :param name: one of :data:`OBJECTS`.
    :param value: what the user gave.
    :raises ValueError: for text that names nothing, and for a name that is to be called first.
    """
    if isinstance(value, str):
        return parse(name, value, OBJECTS[name])
    makers = OBJECTS[name].makers
    given = next((known for known, maker in makers.items() if maker is value), None)
    if given is not None and name == "labeller":
        raise ValueError(
            f"{name} must be made by a call, got {given} itself: write {EXAMPLES[given]}"
        )
    return value


#: A call of each labeller, for the messages.
EXAMPLES = {
    "advantage": "advantage()",
    "best_worst": "best_worst()",
    "boltzmann": "boltzmann(1.0)",
    "quantile": "threshold(quantile(0.75))",
    "threshold": "threshold(mean_score)",
    "top_k": "top_k(2)",
}
