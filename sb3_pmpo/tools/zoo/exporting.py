"""``sb3-pmpo export``: a trained policy on its own, as ONNX and as TorchScript."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, unwrap_vec_normalize

from sb3_pmpo.command_line import count
from sb3_pmpo.export import OPSET, PRODUCER, ExportError, check, to_onnx, to_torchscript
from sb3_pmpo.files import whole
from sb3_pmpo.online.off_policy import OffPolicyMPO
from sb3_pmpo.tools.outputs import OutputError, check_output
from sb3_pmpo.tools.zoo.agents import AgentError, find_agent, make_parser
from sb3_pmpo.tools.zoo.shipped import unpacked

WRITERS = {".onnx": to_onnx, ".pt": to_torchscript}


def export(arguments: Sequence[str]) -> int:
    """Write the files, then run them beside the agent on observations of its environment."""
    with unpacked("export", arguments) as chosen:
        return _export(chosen)


def _export(arguments: Sequence[str]) -> int:
    parser = make_parser(
        "export",
        "Write the deterministic policy, with its normalisation and its scaling to the action's "
        f"bounds, as ONNX (operator set {OPSET}) and TorchScript, then check both against predict.",
        pretrained=True,
        acts=False,
    )
    parser.add_argument(
        "-o", "--output", type=Path, nargs="+", metavar="FILE",
        help="*.onnx and *.pt files (default: both, named after the agent)",
    )  # fmt: skip
    parser.add_argument(
        "--observations", type=count, default=1000, help="to check on (default: 1000)"
    )
    args = parser.parse_args(arguments)
    try:
        agent = find_agent(args)
        paths = args.output or [Path(f"{agent.label}{suffix}") for suffix in WRITERS]
        for path in paths:
            if path.suffix not in WRITERS:
                raise OutputError(f"{path} must end in {' or '.join(WRITERS)}")
            check_output(path, PRODUCER)
        env = agent.make_env(n_envs=1, seed=args.seed, render=False)
        model: Any = agent.load(env, seed=args.seed, device="cpu")
        if not isinstance(model, OffPolicyMPO):
            raise AgentError(f"export takes pmpo, mpo and dpo, got {args.algo}")
        seen = _observations(model, args.observations)
        normalize = unwrap_vec_normalize(env)
        for path in paths:
            with whole(path) as writing:  # what fails the check takes no other file's place
                WRITERS[path.suffix](model, writing, normalize)
                said = check(writing, model, seen, normalize)
            print(str(said).replace(str(writing), str(path)))
    except (AgentError, ExportError, OutputError) as error:
        parser.error(str(error))
    return 0


def _observations(model: OffPolicyMPO, number: int) -> Any:
    """Return what the agent sees in its environment, before it is normalised."""
    env = model.get_env()
    assert env is not None  # it was loaded with one
    observations: Any = env.reset()
    seen = []
    for _ in range(number):
        seen.append(_raw(env, observations))
        actions, _ = model.predict(observations, deterministic=False)
        observations, *_ = env.step(actions)
    if isinstance(seen[0], dict):
        return {key: np.concatenate([each[key] for each in seen]) for key in seen[0]}
    return np.concatenate(seen)


def _raw(env: VecEnv, observations: Any) -> Any:
    normalize: VecNormalize | None = unwrap_vec_normalize(env)
    return observations if normalize is None else normalize.get_original_obs()
