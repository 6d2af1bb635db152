"""Two CPU processes, started as `torchrun` starts them, make the update of one."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytest.importorskip("trl", reason="needs the extra: pip install 'sb3_pmpo[lm]'")

SCRIPT = textwrap.dedent("""
    import sys, warnings
    warnings.simplefilter("ignore")
    import torch as th
    th.set_num_threads(1)
    from sb3_pmpo.lm import PMPOOfflineConfig, PMPOOfflineTrainer, PMPOConfig, PMPOTrainer
    from sb3_pmpo.lm.tiny import tiny_model, tiny_tokenizer
    from datasets import Dataset

    folder, processes = sys.argv[1], int(sys.argv[2])
    tokenizer = tiny_tokenizer("abcd")
    common = dict(report_to=[], use_cpu=True, disable_tqdm=True, save_strategy="no", seed=0,
                  optim="sgd", learning_rate=0.1, lr_scheduler_type="constant", logging_steps=1,
                  output_dir=folder)
    rows = [{"prompt": "abcd"[i % 4], "completion": "a b c d"[: 2 * (i % 3) + 1],
             "label": i % 3 != 1} for i in range(32)]
    model = tiny_model(tokenizer, width=32, layers=1)
    offline = PMPOOfflineTrainer(model, PMPOOfflineConfig(
        max_steps=3, per_device_train_batch_size=16 // processes, **common), rows,
        processing_class=tokenizer)
    offline.train()
    learned = offline.accelerator.unwrap_model(offline.model)
    flat = th.cat([p.detach().flatten() for p in learned.parameters()])
    online = PMPOTrainer(tiny_model(tokenizer, width=32, layers=1),
        lambda completions, **_: [float(len(c)) for c in completions],
        PMPOConfig(max_steps=2, per_device_train_batch_size=8, num_generations=8, bf16=False,
                   max_completion_length=4, reference_steps=2, **common),
        train_dataset=Dataset.from_dict({"prompt": [*"abcd"] * 4}), processing_class=tokenizer)
    online.train()
    policy = online.accelerator.unwrap_model(online.model)
    mine = th.cat([p.detach().flatten() for p in policy.parameters()])
    everyone = online.accelerator.gather(mine.unsqueeze(0))
    assert all(th.equal(other, mine) for other in everyone), "the processes have drifted apart"
    th.testing.assert_close(th.cat([p.flatten() for p in online.accelerator.unwrap_model(
        online.reference.copy).parameters()]), mine)
    if offline.accelerator.is_main_process:
        assert everyone.shape[0] == processes
        th.save(flat, f"{folder}/parameters{processes}.pt")
""")


@pytest.mark.slow
def test_two_processes(tmp_path: Path) -> None:
    import torch as th

    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    for processes in (1, 2):
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone",
                  "--nproc_per_node", str(processes)]  # fmt: skip
        command = [*launch, str(script), str(tmp_path), str(processes)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = (th.load(tmp_path / f"parameters{n}.pt", weights_only=True) for n in (1, 2))
    th.testing.assert_close(one, two, atol=2e-6, rtol=1e-4)
