"""PMPOTrainer's completions: chats, stop strings, truncation, several rewards."""

from __future__ import annotations

import pytest
import torch as th

pytest.importorskip("trl", reason="needs the extra: pip install 'sb3_pmpo[lm]'")

from conftest import WORDS, history, judge, prepared
from datasets import Dataset

from sb3_pmpo.core.labels import top_k

pytestmark = pytest.mark.filterwarnings("ignore")


class TestCompletions:
    def test_chat_and_several_turns(self, online):
        turns = [
            {"role": "system", "content": "a b"},
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b"},
            {"role": "user", "content": "c"},
        ]
        prompts = [turns, turns[1:2]] * 8
        trainer = online(train_dataset=Dataset.from_dict({"prompt": prompts}), max_steps=2)
        trainer.train()
        assert trainer.state.global_step == 2

    def test_a_stop_string_ends_a_completion(self, online):
        trainer = prepared(online(stop_strings=["b"], num_generations=8))
        rows = [{"prompt": p} for p in WORDS for _ in range(8)]
        batch = trainer._generate_and_score_completions(rows)
        texts = [
            trainer.processing_class.decode(ids[mask.bool()]).split()
            for ids, mask in zip(batch["completion_ids"], batch["completion_mask"], strict=True)
        ]
        assert any("b" in text for text in texts)
        assert all("b" not in text[:-1] for text in texts)
        unfinished = trainer._unfinished(batch["completion_ids"], batch["completion_mask"])
        assert not any(cut for cut, text in zip(unfinished, texts, strict=True) if text[-1] == "b")

    def test_a_stop_string_is_found_at_its_first_place(self, online):
        trainer = online(stop_strings=["b c"])
        encode = trainer.processing_class.encode
        assert trainer._stop(encode("a b d b c a b c")) == 5
        assert trainer._stop(encode("b c")) == 2
        assert trainer._stop(encode("b d c")) is None

    def test_a_reward_model(self, online, tokenizer):
        """One that was made in memory, beside a function."""
        from transformers import LlamaConfig, LlamaForSequenceClassification

        config = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
            num_attention_heads=2, num_labels=1, pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        trainer = online(
            reward_funcs=[LlamaForSequenceClassification(config), judge],
            reward_processing_classes=[tokenizer, None],
            labeller=top_k(4),
            max_steps=1,
        )
        trainer.train()
        spread = [
            k for k in trainer.state.log_history[0] if k.startswith("rewards/") and "std" in k
        ]
        assert len(spread) == 2

    @pytest.mark.parametrize("truncated", ["keep", "reject", "mask"])
    def test_truncated_completions(self, online, truncated):
        trainer = prepared(online(truncated=truncated, max_completion_length=2))
        batch = trainer._generate_and_score_completions([{"prompt": "a"} for _ in range(16)])
        cut = trainer._unfinished(batch["completion_ids"], batch["completion_mask"])
        assert cut.any()
        labelled = batch["accept_weight"] + batch["reject_weight"] > 0
        assert labelled[cut].all() == (truncated != "mask")
        if truncated == "reject":
            assert (batch["accept_weight"][cut] == 0).all()
        assert (batch["kl_weight"][cut] == 0).all() == (truncated == "mask")
        assert trainer._compute_loss(trainer.model, batch).isfinite()

    def test_a_completion_without_a_token(self, online):
        """All of its tokens came from a tool: it counts for nothing, and the loss is finite."""
        trainer = prepared(online())
        batch = trainer._generate_and_score_completions([{"prompt": "a"} for _ in range(8)])
        tool_mask = th.ones_like(batch["completion_mask"])
        tool_mask[0] = 0
        loss = trainer._compute_loss(trainer.model, {**batch, "tool_mask": tool_mask})
        loss.backward()
        assert all(p.grad.isfinite().all() for p in trainer.model.parameters())

    def test_several_rewards_with_weights(self, online):
        def shortness(completions, **_):
            return [-float(len(c)) for c in completions]

        trainer = online(
            reward_funcs=[judge, shortness], reward_weights=[1.0, 0.01], labeller=top_k(4)
        )
        trainer.train()
        assert "rewards/shortness/mean" in trainer.state.log_history[0]

    def test_rewards_that_are_normalised_before_they_are_summed(self, online):
        """A judge in units of a hundred decides alone, unless it is normalised first."""

        def shortness(completions, **_):
            return [-100.0 * len(c) for c in completions]

        accepted = {}
        for aggregation in ("sum_then_normalize", "normalize_then_sum"):
            trainer = prepared(
                online(
                    reward_funcs=[judge, shortness],
                    reward_weights=[1.0, 0.1],
                    labeller=top_k(4),
                    multi_objective_aggregation=aggregation,
                )
            )
            th.manual_seed(0)
            rows = [{"prompt": p} for p in "ab" for _ in range(8)]
            batch = trainer._generate_and_score_completions(rows)
            texts = trainer.processing_class.batch_decode(
                batch["completion_ids"], skip_special_tokens=True
            )
            yes = th.tensor(judge(texts))
            accepted[aggregation] = (batch["accept_weight"] * yes).sum() / yes.sum()
        assert accepted["normalize_then_sum"] == 0.25  # each that the judge likes is accepted
        assert accepted["sum_then_normalize"] < 0.25

    def test_an_aggregation_that_there_is_not(self, online):
        with pytest.raises(ValueError, match="multi_objective_aggregation must be one of"):
            online(multi_objective_aggregation="product")

    def test_an_evaluation_draws_from_the_policy(self, online):
        data = Dataset.from_dict({"prompt": [*WORDS]})
        trainer = online(
            eval_dataset=data, eval_strategy="steps", eval_steps=2, per_device_eval_batch_size=8
        )
        trainer.train()
        assert len(history(trainer, "eval_reward")) == 2
        assert all(value == value for value in history(trainer, "eval_loss"))
