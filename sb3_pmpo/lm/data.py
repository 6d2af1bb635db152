"""Labelled completions: from rows of text to padded tokens.

A row is ``{prompt, completion, label}`` or a pair ``{prompt, chosen, rejected}``; prompts and
completions are texts, or lists of messages, which the chat template turns into text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch as th
from trl.data_utils import apply_chat_template, is_conversational
from trl.trainer.utils import pad


class Labelled(NamedTuple):
    """A labelled completion.

    :param prompt_ids: its tokens.
    :param completion_ids: its tokens, the end token included.
    :param label: 1 accepted, -1 rejected, 0 neither: it counts for the KL only.
    """

    prompt_ids: list[int]
    completion_ids: list[int]
    label: int


def unpair(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Make two rows of each pair, and leave the others as they are."""
    single: list[dict[str, Any]] = []
    for row in rows:
        if "chosen" in row and "rejected" in row:
            for name, label in (("chosen", True), ("rejected", False)):
                single.append({"prompt": row["prompt"], "completion": row[name], "label": label})
        else:
            single.append({name: row.get(name) for name in ("prompt", "completion", "label")})
    return single


def to_label(value: Any) -> int:
    """Read a label: a boolean, a number by its sign, or None for neither.

    :raises ValueError: if it is something else.
    """
    if value is None:
        return 0
    if isinstance(value, bool):
        return 1 if value else -1
    if isinstance(value, int | float) and value == value:
        return (value > 0) - (value < 0)
    raise ValueError(f"label must be true, false, a number or null, got {value!r}")


def tokenize(
    rows: Sequence[dict[str, Any]], tokenizer: Any, *, max_length: int | None, truncated: str
) -> list[Labelled]:
    """Tokenize labelled completions; prompt and completion apart, as they are when one is drawn.

    :param rows: single ones, of :func:`unpair`.
    :param tokenizer: with an end token.
    :param max_length: tokens of prompt and completion together. A prompt loses its start, as far as
        half of them, and then a completion its end.
    :param truncated: what becomes of a completion that lost its end: ``"keep"``, ``"reject"`` or
        ``"mask"``.
    :raises ValueError: naming the row that has no prompt, or a label that means nothing.
    """
    found = []
    for number, row in enumerate(rows):
        try:
            label = to_label(row["label"])
            prompt, completion = _ids(row, tokenizer)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"row {number} of the data: {error}") from error
        if not prompt:
            raise ValueError(
                f"row {number} of the data has an empty prompt: start it with a token, such as "
                "the tokenizer's bos_token, for the model predicts from what came before"
            )
        prompt, completion, cut = _fit(prompt, completion, max_length)
        if cut and truncated == "mask":
            continue
        found.append(Labelled(prompt, completion, -1 if cut and truncated == "reject" else label))
    return found


def _ids(row: dict[str, Any], tokenizer: Any) -> tuple[list[int], list[int]]:
    chat = is_conversational(row)
    text = apply_chat_template(row, tokenizer) if chat else row
    prompt = tokenizer(text["prompt"], add_special_tokens=not chat)["input_ids"]
    completion = tokenizer(text["completion"], add_special_tokens=False)["input_ids"]
    if not chat and (not completion or completion[-1] != tokenizer.eos_token_id):
        completion = [*completion, tokenizer.eos_token_id]  # a chat template ends turns itself
    return prompt, completion


def _fit(
    prompt: list[int], completion: list[int], max_length: int | None
) -> tuple[list[int], list[int], bool]:
    if max_length is None or len(prompt) + len(completion) <= max_length:
        return prompt, completion, False
    room = max(max_length - len(completion), max_length // 2, 1)
    prompt = prompt[-room:]
    room = max_length - len(prompt)
    return prompt, completion[:room], len(completion) > room


class Collator:
    """Pad labelled completions: the prompts on the left, the completions on the right.

    :param pad_token_id: what is put there.
    """

    def __init__(self, pad_token_id: int) -> None:
        self.pad_token_id = pad_token_id

    def __call__(self, rows: Sequence[Labelled]) -> dict[str, th.Tensor]:
        """Make tensors ``[N, P]``, ``[N, C]`` and ``[N]``."""
        padded: dict[str, th.Tensor] = {}
        for name, side in (("prompt", "left"), ("completion", "right")):
            ids = [th.tensor(getattr(row, f"{name}_ids"), dtype=th.long) for row in rows]
            ones = [th.ones_like(row) for row in ids]
            padded[f"{name}_ids"] = pad(ids, self.pad_token_id, padding_side=side)
            padded[f"{name}_mask"] = pad(ones, 0, padding_side=side)
        return {**padded, "label": th.tensor([row.label for row in rows])}
