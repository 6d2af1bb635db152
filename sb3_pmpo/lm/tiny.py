"""A causal model and a word-level tokenizer made from nothing, for examples, tests and trials.

They need no download. A model of 0.1M parameters trains in seconds on a CPU.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch as th
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

#: Messages as ``role content`` lines of words; the assistant's turn ends with the end token.
CHAT_TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} "
    "{% if m['role'] == 'assistant' %}<eos> {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


def tiny_tokenizer(words: Iterable[str], *, chat: bool = False) -> PreTrainedTokenizerFast:
    """Make a tokenizer of words, separated by spaces.

    :param words: of the vocabulary, besides ``<pad>``, ``<eos>`` and ``<unk>``.
    :param chat: give it a chat template with the roles system, user and assistant.
    """
    special = ["<pad>", "<eos>", "<unk>"]
    special += ["<system>", "<user>", "<assistant>"] if chat else []
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys([*special, *words]))}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
    )
    if chat:
        fast.chat_template = CHAT_TEMPLATE
    return fast


def tiny_model(
    tokenizer: PreTrainedTokenizerFast,
    *,
    width: int = 64,
    layers: int = 2,
    positions: int = 128,
    seed: int = 0,
) -> LlamaForCausalLM:
    """Make a Llama with random weights.

    :param tokenizer: whose vocabulary it has.
    :param width: of its layers, a multiple of 4.
    :param layers: how many.
    :param positions: tokens of the longest sequence.
    :param seed: of the weights; the global generator is left as it was.
    """
    ends: dict[str, Any] = {
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
    }
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=positions,
        tie_word_embeddings=True,
        **ends,
    )
    with th.random.fork_rng():
        th.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return model


def pretrain(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    texts: Sequence[str],
    *,
    steps: int,
    batch_size: int = 32,
    learning_rate: float = 3e-3,
    seed: int = 0,
) -> float:
    """Fit a model to texts by maximum likelihood; each ends with the end token.

    :return: the loss of the last tenth of the steps, in nats a token.
    """
    rows = tokenizer([f"{text} <eos>" for text in texts], padding=True, return_tensors="pt")
    ids, mask = rows["input_ids"], rows["attention_mask"]
    labels = ids.masked_fill(mask == 0, -100)
    optimizer = th.optim.AdamW(model.parameters(), learning_rate)
    schedule = th.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
    generator = th.Generator().manual_seed(seed)
    losses = []
    model.train()
    for _ in range(steps):
        at = th.randint(len(ids), (batch_size,), generator=generator)
        loss = model(input_ids=ids[at], attention_mask=mask[at], labels=labels[at]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    last = losses[-max(1, steps // 10) :]
    return sum(last) / len(last)


def save_tiny(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, path: Path) -> str:
    """Write model and tokenizer into a folder, as ``from_pretrained`` reads them; return it."""
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)
