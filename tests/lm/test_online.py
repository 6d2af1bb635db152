"""PMPOTrainer: it learns, from accepts and from rejects alone; the known traps are avoided."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch as th

pytest.importorskip("trl", reason="needs the extra: pip install 'sb3_pmpo[lm]'")

from conftest import WORDS, judge
from datasets import Dataset
from transformers import TrainerCallback

from sb3_pmpo.core.labels import top_k
from sb3_pmpo.lm import loss as lm_loss
from sb3_pmpo.lm.reference import check_whole
from sb3_pmpo.lm.tiny import save_tiny

pytestmark = pytest.mark.filterwarnings("ignore")


def parameters(model: Any) -> th.Tensor:
    return th.cat([p.detach().flatten() for p in model.parameters()])


def prepared(trainer: Any) -> Any:
    """Bring a trainer to where ``train`` has it when it asks for a loss."""
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    return trainer


def history(trainer: Any, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


@pytest.mark.parametrize(
    ("alpha", "beta"), [(1.0, 0.0), (0.0, 2.0), (0.5, 1.0)], ids=["accepts", "rejects", "both"]
)
def test_it_learns_the_judges_taste(online, alpha, beta):
    trainer = online(
        alpha=alpha, beta=beta, max_steps=40, reference_steps=4, per_device_train_batch_size=64
    )
    trainer.train()
    rewards = history(trainer, "reward")
    assert sum(rewards[:2]) / 2 < 0.35
    assert sum(rewards[-4:]) / 4 > 0.85


def test_the_logged_names_are_trls(online):
    trainer = online(max_steps=2)
    trainer.train()
    first = trainer.state.log_history[0]
    names = {"loss", "grad_norm", "learning_rate", "reward", "reward_std", "rewards/judge/mean",
             "completions/mean_length", "completions/clipped_ratio", "num_tokens",
             "logps/chosen", "logps/rejected", "kl"}  # fmt: skip
    assert names <= {*first}
    assert first["kl"] == pytest.approx(0.0, abs=1e-6)  # the reference is the policy at first


class Watch(TrainerCallback):
    """Keep the policy's parameters before each step."""

    def __init__(self) -> None:
        self.policy: list[th.Tensor] = []

    def on_step_begin(self, args, state, control, model, **kwargs) -> None:
        self.policy.append(parameters(model))


class TestReference:
    def test_completions_come_from_the_reference(self, online, monkeypatch):
        """Steps 2 to 4 draw from the initial policy, though the policy has moved."""
        watch = Watch()
        trainer = online(reference_steps=4, max_steps=6, callbacks=[watch])
        drawing = []
        generate = type(trainer.model).generate

        def spy(model, *args, **kwargs):
            drawing.append(parameters(model))
            return generate(model, *args, **kwargs)

        monkeypatch.setattr(type(trainer.model), "generate", spy)
        trainer.train()
        moved = [bool((a != b).any()) for a, b in zip(drawing, watch.policy, strict=True)]
        assert moved == [False, True, True, True, False, True]
        assert all(th.equal(drawing[0], d) for d in drawing[1:4])
        assert th.equal(drawing[4], watch.policy[4])

    def test_a_model_made_in_memory_has_a_reference(self, online, model):
        """It has no path from which a second one could be loaded."""
        assert not Path(model.config._name_or_path).exists() or not model.config._name_or_path
        trainer = online()
        assert th.equal(parameters(trainer.reference.copy), parameters(model))

    def test_beta_zero_has_a_reference_too(self, online):
        trainer = online(alpha=1.0, beta=0.0, reference_steps=0)
        before = parameters(trainer.reference.copy)
        trainer.train()
        assert th.equal(parameters(trainer.reference.copy), before)
        assert not th.equal(parameters(trainer.model), before)

    def test_the_copy_does_not_call_the_policy(self, online):
        """Trainers patch ``forward``, and a copy of a patched model calls the original."""
        trainer = online()
        ids = th.tensor([[3, 4, 5]])
        before = trainer.reference.copy(input_ids=ids).logits
        with th.no_grad():
            for p in trainer.model.parameters():
                p.add_(0.1)
        assert th.equal(trainer.reference.copy(input_ids=ids).logits, before)

    def test_the_logits_are_whole_despite_the_fused_head(self, online, model):
        trainer = online()
        ids, mask = th.tensor([[3, 4, 5]]), th.ones(1, 3, dtype=th.long)
        sequences = lm_loss.Sequences(ids, mask, ids, mask, mask.bool())
        logits = lm_loss.completion_logits(trainer.model, model, sequences)
        assert logits.shape == (1, 4, model.config.vocab_size)

    def test_both_are_computed_in_the_same_precision(self, online):
        trainer = online(bf16=True, max_steps=2, reference_steps=2)
        trainer.train()
        assert history(trainer, "kl")[0] == 0.0
        assert 0.0 < history(trainer, "kl")[1] < 1.0

    def test_the_reference_is_in_a_checkpoint_before_what_makes_it_whole(self, online, monkeypatch):
        """Trainer's state is written last: with it, the reference is there too."""
        seen = []

        def save(reference, folder, accelerator):
            seen.append((folder / "trainer_state.json").exists())

        monkeypatch.setattr("sb3_pmpo.lm.online.save_reference", save)
        online(max_steps=2, save_strategy="steps", save_steps=1).train()
        assert seen == [False, False]

    def test_shards_are_refused(self, online):
        """A copy of one process's shards is no reference."""
        from accelerate.utils import DistributedType

        accelerator = online().accelerator
        check_whole(accelerator)
        accelerator.state.distributed_type, before = (
            DistributedType.FSDP,
            accelerator.state.distributed_type,
        )
        try:
            with pytest.raises(ValueError, match="FSDP gives each process a part"):
                check_whole(accelerator)
        finally:
            accelerator.state.distributed_type = before

    def test_dropout_is_off(self, online, model):
        trainer = online(model=model, beta=1.0)
        assert all(m.p == 0 for m in trainer.model.modules() if isinstance(m, th.nn.Dropout))
        with pytest.warns(UserWarning, match="disable_dropout=False"):
            online(disable_dropout=False)


class TestRefusals:
    @pytest.mark.parametrize("beta", [0.0, 1.0, 1.9])
    def test_rejects_only_under_the_threshold(self, online, beta):
        with pytest.raises(
            ValueError, match=r"rejected completions only: .*below 2 \* \(1 - alpha"
        ):
            online(alpha=0.0, beta=beta)

    def test_rejects_only_with_a_reference_refreshed_at_every_update(self, online):
        with pytest.raises(ValueError, match="KL without a gradient"):
            online(alpha=0.0, beta=2.0, reference_steps=1)

    def test_a_small_kl_with_both_kinds_is_warned_of(self, online):
        with pytest.warns(UserWarning, match="below 2"):
            online(alpha=0.5, beta=0.5)

    def test_reference_steps_that_cut_a_generation_batch(self, online):
        with pytest.raises(
            ValueError, match="multiple of the 2 optimizer steps between generations"
        ):
            online(steps_per_generation=2, reference_steps=3)

    def test_generation_that_cuts_an_optimizer_step(self, online):
        with pytest.raises(ValueError, match="must be multiples of one another"):
            online(steps_per_generation=3, gradient_accumulation_steps=2)

    @pytest.mark.parametrize(
        ("option", "remedy"),
        [
            ({"mask_truncated_completions": True}, 'truncated="mask"'),
            ({"sync_ref_model": True}, "reference_steps"),
            ({"entropy_coef": 0.1}, "GRPO's loss"),
        ],
    )
    def test_options_of_grpos_loss(self, online, option, remedy):
        with pytest.raises(ValueError, match=re.escape(remedy)):
            online(**option)

    def test_vllm_that_cannot_draw_from_the_reference(self, online):
        with pytest.raises(ValueError, match="needs reference_steps=1, got 4"):
            online(use_vllm=True, reference_steps=4)

    def test_a_labeller_that_needs_more_completions(self, online):
        with pytest.raises(ValueError, match="draw more samples"):
            online(labeller=top_k(5), num_generations=8)

    def test_truncated_names(self, online):
        with pytest.raises(ValueError, match="truncated must be one of"):
            online(truncated="drop")

    def test_top_p_is_warned_of(self, online):
        with pytest.warns(UserWarning, match="not drawn from the reference"):
            online(top_p=0.9)


class TestMinibatches:
    def test_accumulation_changes_nothing(self, online, model):
        """Two minibatches of 16 are one of 32: completions of a prompt may be apart."""
        results = []
        for size, accumulation in ((32, 1), (16, 2)):
            trainer = online(
                model=copy.deepcopy(model),
                per_device_train_batch_size=size,
                gradient_accumulation_steps=accumulation,
                max_steps=2,
                reference_steps=2,
                optim="sgd",
                learning_rate=0.1,
            )
            trainer.train()
            results.append((parameters(trainer.model), history(trainer, "grad_norm")))
        th.testing.assert_close(results[0][0], results[1][0], atol=2e-6, rtol=1e-4)
        assert results[0][1] == pytest.approx(results[1][1], rel=1e-3)

    def test_the_gradient_is_that_of_the_objective_by_prompt(self, online, monkeypatch):
        """Eq. 10 by prompt, averaged, from plain log-softmax."""
        trainer = online(per_device_train_batch_size=16, beta=1.5, reference_steps=0)
        trainer = prepared(trainer)
        with th.no_grad():
            trainer.model.lm_head.weight.add_(0.05 * th.randn_like(trainer.model.lm_head.weight))
        rows = [{"prompt": p} for p in "ab" for _ in range(8)]
        batch = trainer._generate_and_score_completions(rows)
        got = trainer._compute_loss(trainer.model, batch)
        ids = th.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
        mask = batch["completion_mask"].bool()
        log_pi, log_ref = (
            m(input_ids=ids).logits[:, :-1].log_softmax(-1)
            for m in (trainer.model, trainer.reference.copy)
        )
        log_prob = (log_pi.gather(-1, ids[:, 1:, None])[..., 0] * mask).sum(1).view(2, 8)
        kl = ((log_ref.exp() * (log_ref - log_pi)).sum(-1) * mask).sum(1).view(2, 8)
        yes = th.tensor(judge(trainer.processing_class.batch_decode(batch["completion_ids"])))
        yes = yes.view(2, 8)
        accept = yes / yes.sum(1, keepdim=True).clamp(min=1)
        reject = (1 - yes) / (1 - yes).sum(1, keepdim=True).clamp(min=1)
        by_prompt = ((-accept + reject) * 0.5 * log_prob).sum(1) + 1.5 * kl.mean(1)
        th.testing.assert_close(got, by_prompt.mean())

    def test_several_generations_before_a_refresh(self, online):
        trainer = online(steps_per_generation=2, num_iterations=2, reference_steps=4, max_steps=8)
        trainer.train()
        assert trainer.state.global_step == 8


class TestResume:
    @pytest.mark.parametrize(
        ("settings", "at"),
        [
            ({"reference_steps": 2}, 3),
            ({"reference_steps": 4, "steps_per_generation": 2}, 3),  # within a generation batch
            ({"reference_steps": 2, "gradient_accumulation_steps": 2}, 3),
        ],
    )
    def test_a_killed_run_goes_on_as_if_it_had_not_been(self, online, model, settings, at):
        whole = online(model=copy.deepcopy(model), max_steps=6, **settings)
        whole.train()
        saving = {"save_strategy": "steps", "save_steps": at}
        killed = online(model=copy.deepcopy(model), max_steps=6, **settings, **saving)
        killed.add_callback(Kill(at))
        with pytest.raises(KeyboardInterrupt):
            killed.train()
        resumed = online(model=copy.deepcopy(model), max_steps=6, **settings)
        resumed.train(resume_from_checkpoint=f"{resumed.args.output_dir}/checkpoint-{at}")
        assert th.equal(parameters(resumed.model), parameters(whole.model))
        assert th.equal(parameters(resumed.reference.copy), parameters(whole.reference.copy))
        assert history(resumed, "reward") == history(whole, "reward")


class Kill(TrainerCallback):
    def __init__(self, at: int) -> None:
        self.at = at

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        if state.global_step == self.at:
            raise KeyboardInterrupt


class TestAdapters:
    @staticmethod
    def config() -> Any:
        from peft import LoraConfig

        return LoraConfig(
            r=4, target_modules=["q_proj", "v_proj", "up_proj"], task_type="CAUSAL_LM"
        )

    def test_the_base_is_the_reference_without_a_copy(self, online, model):
        pytest.importorskip("peft")
        before = parameters(model)
        trainer = online(peft_config=self.config(), reference_steps=0, max_steps=3)
        names = {name for name, _ in trainer.model.named_parameters() if "lora" in name}
        assert all(".default." in name for name in names)
        trainer.train()
        assert history(trainer, "kl")[-1] > 0
        with trainer.reference.model(trainer.model) as reference:
            ids = th.tensor([[3, 4, 5]])
            got = reference(input_ids=ids).logits
        bases = [p for n, p in trainer.model.named_parameters() if "lora" not in n]
        assert th.equal(th.cat([p.flatten() for p in bases]), before)
        assert not th.equal(got, trainer.model(input_ids=ids).logits)

    def test_a_refreshed_reference_is_an_adapter(self, online, model):
        pytest.importorskip("peft")
        trainer = online(peft_config=self.config(), reference_steps=2, max_steps=4)
        trainer.train()
        by_name = dict(trainer.model.named_parameters())
        pairs = [(v, by_name[n.replace(".default.", ".reference.")])
                 for n, v in by_name.items() if ".default." in n]  # fmt: skip
        assert pairs
        assert all(th.equal(a, b) for a, b in pairs)  # refreshed at step 4
        assert all(a.requires_grad and not b.requires_grad for a, b in pairs)

    def test_resume(self, online, model):
        pytest.importorskip("peft")
        common = {"peft_config": self.config(), "reference_steps": 2, "max_steps": 5}
        whole = online(model=copy.deepcopy(model), **common)
        whole.train()
        saving = {"save_strategy": "steps", "save_steps": 3}
        online(model=copy.deepcopy(model), **common | saving | {"max_steps": 3}).train()
        resumed = online(model=copy.deepcopy(model), **common)
        resumed.train(resume_from_checkpoint=f"{resumed.args.output_dir}/checkpoint-3")
        assert th.equal(parameters(resumed.model), parameters(whole.model))


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

    def test_an_evaluation_draws_from_the_policy(self, online):
        data = Dataset.from_dict({"prompt": [*WORDS]})
        trainer = online(
            eval_dataset=data, eval_strategy="steps", eval_steps=2, per_device_eval_batch_size=8
        )
        trainer.train()
        assert len(history(trainer, "eval_reward")) == 2
        assert all(value == value for value in history(trainer, "eval_loss"))


def test_a_path_will_do(online, model, tokenizer, tmp_path):
    path = save_tiny(model, tokenizer, tmp_path / "tiny")
    trainer = online(model=path, max_steps=2)
    trainer.train()
    assert th.equal(parameters(trainer.reference.copy), parameters(trainer.model))
