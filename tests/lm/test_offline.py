"""PMPOOfflineTrainer: labelled completions of both kinds, of one kind, in pairs."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch as th

pytest.importorskip("trl", reason="needs the extra: pip install 'sb3_pmpo[lm]'")

from conftest import WORDS, judge, parameters

from sb3_pmpo.lm.data import Collator, tokenize, unpair

pytestmark = pytest.mark.filterwarnings("ignore")


def draw(model: Any, tokenizer: Any, n: int) -> list[str]:
    with th.random.fork_rng():
        th.manual_seed(0)
        rows = tokenizer([*WORDS] * (n // 4), return_tensors="pt")
        ids = model.eval().generate(**rows, max_new_tokens=8, do_sample=True, top_k=0)
    return tokenizer.batch_decode(ids[:, 1:], skip_special_tokens=True)


@pytest.fixture(scope="session")
def labelled(pretrained: Any, tokenizer: Any) -> list[dict[str, Any]]:
    texts = draw(pretrained, tokenizer, 1024)
    return [
        {"prompt": WORDS[i % 4], "completion": text, "label": bool(yes)}
        for i, (text, yes) in enumerate(zip(texts, judge(texts), strict=True))
    ]


@pytest.mark.parametrize(
    ("kinds", "alpha", "beta", "least"),
    [({True}, 1.0, 0.0, 0.5), ({False}, 0.0, 2.0, 0.24), ({True, False}, 0.5, 1.0, 0.3)],
    ids=["accepts", "rejects", "both"],
)
def test_it_learns_from_what_labels_there_are(
    offline, labelled, tokenizer, kinds, alpha, beta, least
):
    assert sum(row["label"] for row in labelled) / len(labelled) < 0.22  # what the model drew
    rows = [row for row in labelled if row["label"] in kinds]
    trainer = offline(rows, max_steps=30, per_device_train_batch_size=32, learning_rate=3e-3)
    assert (trainer.args.alpha, trainer.args.beta) == (alpha, beta)
    trainer.train()
    assert sum(judge(draw(trainer.model, tokenizer, 1024))) / 1024 > least


def test_pairs_are_both_kinds(offline, labelled):
    yes = [row["completion"] for row in labelled if row["label"]][:16]
    no = [row["completion"] for row in labelled if not row["label"]][:16]
    pairs = [{"prompt": "a", "chosen": y, "rejected": n} for y, n in zip(yes, no, strict=True)]
    trainer = offline(pairs)
    assert trainer.shares == (0.5, 0.5)
    trainer.train()
    names = {"loss", "logps/chosen", "logps/rejected", "kl"}
    assert names <= {*trainer.state.log_history[0]}


def test_accumulation_changes_nothing(offline, labelled, model):
    results = []
    for size, accumulation in ((32, 1), (8, 4)):
        trainer = offline(
            labelled[:64], model=copy.deepcopy(model), per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation, max_steps=3, optim="sgd", learning_rate=0.1,
        )  # fmt: skip
        trainer.train()
        results.append(parameters(trainer.model))
    th.testing.assert_close(*results, atol=2e-6, rtol=1e-4)


def test_a_killed_run_goes_on_as_if_it_had_not_been(offline, labelled, model):
    settings = {"reference_steps": 2, "max_steps": 6, "lr_scheduler_type": "constant"}
    whole = offline(labelled, model=copy.deepcopy(model), **settings)
    whole.train()
    saving = {"save_strategy": "steps", "save_steps": 3}
    offline(labelled, model=copy.deepcopy(model), **settings | saving | {"max_steps": 3}).train()
    resumed = offline(labelled, model=copy.deepcopy(model), **settings)
    resumed.train(resume_from_checkpoint=f"{resumed.args.output_dir}/checkpoint-3")
    assert th.equal(parameters(resumed.model), parameters(whole.model))
    assert th.equal(parameters(resumed.reference.copy), parameters(whole.reference.copy))


def test_adapters_have_the_base_for_a_reference(offline, labelled):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    trainer = offline(labelled, peft_config=config)
    assert all(".reference." not in name for name, _ in trainer.model.named_parameters())
    trainer.train()
    history = [entry["kl"] for entry in trainer.state.log_history if "kl" in entry]
    assert history[0] == pytest.approx(0.0, abs=1e-6)
    assert history[-1] > 0


def test_an_evaluation_by_the_loss(offline, labelled):
    trainer = offline(labelled, eval_dataset=labelled[:32])
    found = trainer.evaluate()
    assert {"eval_loss", "eval_kl", "eval_logps/chosen"} <= {*found}


class TestRefusals:
    def test_rejects_only_under_the_threshold(self, offline, labelled):
        rows = [row for row in labelled if not row["label"]]
        with pytest.raises(ValueError, match="rejected completions only"):
            offline(rows, beta=1.0)

    def test_rejects_among_others_by_their_share(self, offline, labelled):
        """12 of 16 rejected: the bound is 1 / (3 / 4), not 2."""
        rows = [row | {"label": None if i % 4 == 0 else False} for i, row in enumerate(labelled)]
        offline(rows[:16], beta=1.4)
        with pytest.raises(ValueError, match=r"below \(1 - alpha\) / 0.75 = 1.333"):
            offline(rows[:16], beta=1.3)

    def test_rare_rejects_are_warned_of(self, offline, labelled):
        """2 of 16 rejected: the loss has a bound from 8 * (1 - alpha) on."""
        rows = [row | {"label": i % 8 != 0} for i, row in enumerate(labelled[:16])]
        with pytest.warns(UserWarning, match=r"12.5% of the samples rejected.*watch kl/sequence"):
            offline(rows)
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            offline(rows, beta=4.0)

    def test_no_labels(self, offline):
        with pytest.raises(ValueError, match="none of the 1 completions has a label"):
            offline([{"prompt": "a", "completion": "b", "label": None}])

    @pytest.mark.parametrize(
        ("row", "message"),
        [
            ({"prompt": "a", "completion": "b", "label": "yes"}, "row 0 .*label must be true"),
            ({"prompt": "", "completion": "b", "label": True}, "row 0 .*empty prompt"),
            ({"prompt": "a", "label": True}, "row 0 of the data"),
        ],
    )
    def test_rows_that_mean_nothing(self, offline, row, message):
        with pytest.raises(ValueError, match=message):
            offline([row])


class TestTokens:
    def ids(self, tokenizer, row, **limits):
        limits = {"max_length": None, "truncated": "keep"} | limits
        return tokenize(unpair([row]), tokenizer, **limits)

    def test_a_text_gets_an_end_and_an_empty_one_is_an_end(self, tokenizer):
        (row,) = self.ids(tokenizer, {"prompt": "a b", "completion": "c", "label": 1})
        assert tokenizer.decode(row.completion_ids) == "c <eos>"
        (row,) = self.ids(tokenizer, {"prompt": "a b", "completion": "", "label": -2.5})
        assert tokenizer.decode(row.completion_ids) == "<eos>"
        assert row.label == -1

    def test_a_chat_of_several_turns(self, tokenizer):
        prompt = [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b"},
            {"role": "user", "content": "c"},
        ]
        answer = [{"role": "assistant", "content": "d"}]
        (row,) = self.ids(tokenizer, {"prompt": prompt, "completion": answer, "label": True})
        assert tokenizer.decode(row.completion_ids) == "d <eos>"
        assert tokenizer.decode(row.prompt_ids).endswith("<user> c <assistant>")

    @pytest.mark.parametrize(
        ("truncated", "labels"), [("keep", [1]), ("reject", [-1]), ("mask", [])]
    )
    def test_what_is_too_long(self, tokenizer, truncated, labels):
        row = {"prompt": "a b c", "completion": "a b c d a b", "label": True}
        found = self.ids(tokenizer, row, max_length=6, truncated=truncated)
        assert [row.label for row in found] == labels
        assert all(len(row.prompt_ids) + len(row.completion_ids) == 6 for row in found)

    def test_padding(self, tokenizer):
        rows = self.ids(tokenizer, {"prompt": "a b", "completion": "c", "label": 1})
        rows += self.ids(tokenizer, {"prompt": "a", "completion": "c d", "label": 0})
        batch = Collator(tokenizer.pad_token_id)(rows)
        assert batch["prompt_mask"].tolist() == [[1, 1], [0, 1]]
        assert batch["completion_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
        assert batch["label"].tolist() == [1, 0]
