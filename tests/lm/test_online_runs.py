"""PMPOTrainer's runs: minibatches, resuming, adapters."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch as th

pytest.importorskip("trl", reason="needs the extra: pip install 'sb3_pmpo[lm]'")

from conftest import history, judge, parameters, prepared
from transformers import TrainerCallback

pytestmark = pytest.mark.filterwarnings("ignore")


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
