"""Two CPU processes, with the environment that `torchrun` gives them, make the update of one."""

from __future__ import annotations

import multiprocessing
import os
import socket
import traceback
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch as th

pytest.importorskip("trl", reason="needs the extra: pip install 'sb3_pmpo[lm]'")

from datasets import Dataset

from sb3_pmpo.lm import PMPOConfig, PMPOOfflineConfig, PMPOOfflineTrainer, PMPOTrainer
from sb3_pmpo.lm.tiny import tiny_model, tiny_tokenizer


def flat(model: Any) -> th.Tensor:
    return th.cat([p.detach().flatten() for p in model.parameters()])


def learn_offline(folder: Path, processes: int) -> th.Tensor:
    """Take three steps with 16 completions each, however many processes share them."""
    tokenizer = tiny_tokenizer("abcd")
    rows = [
        {"prompt": "abcd"[i % 4], "completion": "a b c d"[: 2 * (i % 3) + 1], "label": i % 3 != 1}
        for i in range(32)
    ]
    args = PMPOOfflineConfig(
        max_steps=3, per_device_train_batch_size=16 // processes, **common(folder)
    )
    model = tiny_model(tokenizer, width=32, layers=1)
    trainer = PMPOOfflineTrainer(model, args, rows, processing_class=tokenizer)
    trainer.train()
    assert trainer.accelerator.num_processes == processes
    return flat(trainer.accelerator.unwrap_model(trainer.model))


def learn_online(folder: Path, processes: int) -> None:
    """The processes label each other's completions, and stay together."""
    tokenizer = tiny_tokenizer("abcd")
    args = PMPOConfig(
        max_steps=2, per_device_train_batch_size=8, num_generations=8, bf16=False,
        max_completion_length=4, reference_steps=2, **common(folder),
    )  # fmt: skip
    trainer = PMPOTrainer(
        tiny_model(tokenizer, width=32, layers=1),
        lambda completions, **_: [float(len(c)) for c in completions],
        args,
        train_dataset=Dataset.from_dict({"prompt": [*"abcd"] * 4}),
        processing_class=tokenizer,
    )
    trainer.train()
    mine = flat(trainer.accelerator.unwrap_model(trainer.model))
    everyone = trainer.accelerator.gather(mine.unsqueeze(0))
    assert everyone.shape[0] == processes
    assert all(th.equal(other, mine) for other in everyone), "the processes have drifted apart"
    reference = flat(trainer.accelerator.unwrap_model(trainer.reference.copy))
    th.testing.assert_close(reference, mine)


def common(folder: Path) -> dict[str, Any]:
    return dict(
        report_to=[], use_cpu=True, disable_tqdm=True, save_strategy="no", seed=0, optim="sgd",
        learning_rate=0.1, lr_scheduler_type="constant", logging_steps=1, output_dir=str(folder),
    )  # fmt: skip


def child(folder: Path, rank: int, processes: int, port: int) -> None:
    """Be one of them. A fork has imported everything; what it knows of processes it forgets."""
    from accelerate.state import AcceleratorState, GradientState

    warnings.simplefilter("ignore")
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in names.items()})
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    th.set_num_threads(1)
    try:
        learned = learn_offline(folder, processes)
        learn_online(folder, processes)
        if rank == 0:
            th.save(learned, folder / f"parameters{processes}.pt")
        code = 0
    except BaseException:
        (folder / f"error{rank}.txt").write_text(traceback.format_exc())
        code = 1
    os._exit(code)  # nothing of pytest's is to be torn down here


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_two_processes(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    for processes in (1, 2):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        children = [
            context.Process(target=child, args=(tmp_path, rank, processes, port))
            for rank in range(processes)
        ]
        for started in children:
            started.start()
        for started in children:
            started.join(200)
            if started.is_alive():
                started.kill()
        errors = "".join(path.read_text() for path in sorted(tmp_path.glob("error*.txt")))
        assert [done.exitcode for done in children] == [0] * processes, errors[-3000:]
    one, two = (th.load(tmp_path / f"parameters{n}.pt", weights_only=True) for n in (1, 2))
    th.testing.assert_close(one, two, atol=2e-6, rtol=1e-4)
