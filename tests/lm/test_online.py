"""PMPOTrainer: it learns, from accepts and from rejects alone; the known traps are avoided."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest
import torch as th

pytest.importorskip("trl", reason="needs the extra: pip install 'sb3_pmpo[lm]'")

from conftest import history, parameters
from transformers import TrainerCallback

from sb3_pmpo.core.labels import best_worst, top_k
from sb3_pmpo.lm import loss as lm_loss
from sb3_pmpo.lm.reference import check_whole
from sb3_pmpo.lm.tiny import save_tiny

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize(
    ("alpha", "beta"), [(1.0, 0.0), (0.0, 2.0), (0.5, 1.0)], ids=["accepts", "rejects", "both"]
)
def test_it_learns_the_judges_taste(online, alpha, beta):
    trainer = online(
        alpha=alpha, beta=beta, max_steps=24, reference_steps=4, per_device_train_batch_size=32,
        learning_rate=6e-3,
    )  # fmt: skip
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

    def test_best_and_worst_of_8_need_a_larger_kl(self, online):
        """One of 8 is rejected: the bound is (1 - alpha) / (1 / 8)."""
        with pytest.warns(UserWarning, match=r"below \(1 - alpha\) / 0.125 = 4.*12.5% of"):
            online(labeller=best_worst(), alpha=0.5, beta=1.0)
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            online(labeller=best_worst(), alpha=0.5, beta=4.0)

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


def test_a_path_will_do(online, model, tokenizer, tmp_path):
    path = save_tiny(model, tokenizer, tmp_path / "tiny")
    trainer = online(model=path, max_steps=2)
    trainer.train()
    assert th.equal(parameters(trainer.reference.copy), parameters(trainer.model))
