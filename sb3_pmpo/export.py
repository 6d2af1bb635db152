"""A policy on its own: observations in, actions in the environment's units out; ONNX, TorchScript.

Axes: B states. The inputs are the parts of the observation in the order of the space's keys, raw,
as ``model.predict`` takes them (images with the channels first). The output is what
``model.predict(..., deterministic=True)`` returns.
"""

from __future__ import annotations

import io
import json
import warnings
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

from sb3_pmpo.actor import Actor
from sb3_pmpo.files import whole
from sb3_pmpo.online.off_policy import OffPolicyMPO

#: ONNX's operator set: runtimes since early 2023 (onnxruntime 1.14) have it.
OPSET = 18
#: In each file: who made it.
PRODUCER = "sb3-pmpo export"
#: How far an exported action may lie from predict's, in units of half the action range.
TOLERANCE = 1e-5
#: The name of an observation that has no keys.
OBSERVATION = "observation"


class ExportError(ValueError):
    """A policy that cannot be exported as asked; the message is for who asked."""


class Normalisation(nn.Module):
    """VecNormalize's part: shift, scale and clip, frozen.

    :param moments: with the mean and the variance of one part of the observation.
    :param env: says by how much to clip.
    """

    mean: th.Tensor
    std: th.Tensor

    def __init__(self, moments: Any, env: VecNormalize) -> None:
        super().__init__()
        self.register_buffer("mean", th.as_tensor(moments.mean, dtype=th.float64))
        variance = th.as_tensor(moments.var, dtype=th.float64)
        self.register_buffer("std", (variance + env.epsilon).sqrt())
        self.clip = float(env.clip_obs)

    def forward(self, x: th.Tensor) -> th.Tensor:
        """Normalise ``[B, ...]``; in double precision within, as NumPy does it."""
        return ((x.double() - self.mean) / self.std).clamp(-self.clip, self.clip).float()


class DeterministicPolicy(nn.Module):
    """The deterministic policy with all that lies between the environment and its networks.

    :param model: a PMPO, MPO or DPO, of any policy.
    :param normalize: the statistics that it was trained under; None for the model's own, if any.
    """

    def __init__(self, model: OffPolicyMPO, normalize: VecNormalize | None = None) -> None:
        super().__init__()
        self.actor: Actor = model.policy.actor
        space = self.actor.observation_space
        self.keys = [*space.spaces] if isinstance(space, spaces.Dict) else None
        self.normalisations = nn.ModuleDict()
        normalize = normalize or model.get_vec_normalize_env()
        if normalize is not None and normalize.norm_obs:
            found: Any = normalize.obs_rms
            by_key = found if isinstance(found, dict) else {OBSERVATION: found}
            self.normalisations.update(
                {key: Normalisation(moments, normalize) for key, moments in by_key.items()}
            )
        box = self.actor.action_space
        self.is_box = isinstance(box, spaces.Box)
        self.shape = tuple(box.shape or ())
        if isinstance(box, spaces.Box):
            self.register_buffer("low", th.as_tensor(box.low, dtype=th.float32))
            self.register_buffer("high", th.as_tensor(box.high, dtype=th.float32))

    @property
    def input_names(self) -> list[str]:
        """The names of the inputs."""
        return [OBSERVATION] if self.keys is None else self.keys

    def forward(self, *parts: th.Tensor) -> th.Tensor:
        """Map the parts of the observation, ``[B, ...]`` each, to actions ``[B, *shape]``."""
        named = dict(zip(self.input_names, parts, strict=True))
        for key, normalisation in self.normalisations.items():
            named[key] = normalisation(named[key])
        observations: Any = named if self.keys else named[OBSERVATION]
        latent = self.actor.latent_pi(self.actor.features(observations))
        actions = self.actor.head(latent).mode()  # [B, A]
        if not self.is_box:
            return actions.long().reshape(-1, *self.shape)
        low: Any = self.low
        high: Any = self.high
        scaled = actions.clamp(-1.0, 1.0).reshape(-1, *self.shape)
        return (low + 0.5 * (scaled + 1.0) * (high - low)).clamp(low, high)

    def split(self, observations: Any) -> tuple[np.ndarray, ...]:
        """Return the inputs of some observations, ``[B, ...]`` or a dict of such."""
        if self.keys is None:
            return (np.asarray(observations),)
        return tuple(np.asarray(observations[key]) for key in self.keys)


def sample_observations(space: spaces.Space, n: int, seed: int = 0) -> Any:
    """Draw observations of a space, ``[n, ...]`` or a dict of such, with its dtypes.

    :param space: whose unbounded entries are drawn from a normal distribution.
    """
    if isinstance(space, spaces.Dict):
        return {key: sample_observations(part, n, seed) for key, part in space.spaces.items()}
    seeded = deepcopy(space)  # its own generator stays as it is
    seeded.seed(seed)
    drawn = np.stack([np.asarray(seeded.sample()) for _ in range(n)])
    return drawn.astype(space.dtype) if isinstance(space, spaces.Box) else drawn


# ---------------------------------------------------------------------- writing


def to_onnx(model: OffPolicyMPO, path: str | Path, normalize: VecNormalize | None = None) -> Path:
    """Write the deterministic policy as ONNX, with a free batch size, in operator set ``OPSET``.

    :param model: see :class:`DeterministicPolicy`.
    :param path: of the file.
    :param normalize: the same.
    :raises ExportError: if onnx is missing.
    """
    try:
        import onnx
    except ModuleNotFoundError as error:
        raise ExportError(f"ONNX needs {error.name!r}: pip install 'sb3_pmpo[export]'") from error
    policy, file = _frozen(model, normalize), io.BytesIO()
    names = [*policy.input_names, "action"]
    with warnings.catch_warnings():
        # The exporter that traces is deprecated. It takes 0.2 s where the other one takes 5 s, and
        # needs no onnxscript; these networks have nothing that only the other one understands.
        warnings.simplefilter("ignore")
        th.onnx.export(
            policy,
            _examples(policy),
            file,  # type: ignore[arg-type]  # this exporter takes an open file
            input_names=policy.input_names,
            output_names=["action"],
            dynamic_axes={name: {0: "batch"} for name in names},
            opset_version=OPSET,
            dynamo=False,
        )
    written = onnx.load_from_string(file.getvalue())
    written.producer_name = PRODUCER
    onnx.helper.set_model_props(written, {"sb3_pmpo": json.dumps(_told(policy))})
    onnx.checker.check_model(written)
    with whole(Path(path)) as writing:
        writing.write_bytes(written.SerializeToString())
    return Path(path)


def to_torchscript(
    model: OffPolicyMPO, path: str | Path, normalize: VecNormalize | None = None
) -> Path:
    """Write the deterministic policy as TorchScript, with a free batch size.

    :param model: see :class:`DeterministicPolicy`.
    :param path: of the file.
    :param normalize: the same.
    """
    policy = _frozen(model, normalize)
    told = {"sb3_pmpo.json": json.dumps({"made_by": PRODUCER} | _told(policy))}
    with whole(Path(path)) as writing, warnings.catch_warnings():
        # Of TorchScript, that it is deprecated; of tracing, sizes that are constant here.
        warnings.simplefilter("ignore")
        traced = th.jit.trace(policy, _examples(policy))
        th.jit.save(traced, str(writing), _extra_files=told)
    return Path(path)


def _frozen(model: OffPolicyMPO, normalize: VecNormalize | None) -> DeterministicPolicy:
    model.policy.set_training_mode(False)
    # A copy: the model goes on learning where it is.
    return deepcopy(DeterministicPolicy(model, normalize)).cpu().eval().requires_grad_(False)


def _examples(policy: DeterministicPolicy) -> tuple[th.Tensor, ...]:
    drawn = sample_observations(policy.actor.observation_space, 2)
    return tuple(th.as_tensor(part) for part in policy.split(drawn))


def _told(policy: DeterministicPolicy) -> dict[str, Any]:
    space = policy.actor.observation_space
    parts = space.spaces if isinstance(space, spaces.Dict) else {OBSERVATION: space}
    return {
        "inputs": {key: f"{part.dtype} [batch, {part.shape}]" for key, part in parts.items()},
        "action_space": str(policy.actor.action_space),
    }


# ---------------------------------------------------------------------- checking


class Check(NamedTuple):
    """How far a file's actions are from ``predict``'s.

    :param path: of the file.
    :param observations: how many were compared.
    :param error: the largest difference; of a Box in units of half the action range.
    :param is_box: whether the actions are of a Box.
    """

    path: Path
    observations: int
    error: float
    is_box: bool = True

    def __str__(self) -> str:
        """Say how near the actions are; those of a discrete space are the same, or refused."""
        if not self.is_box:
            return f"{self.path}: the same actions as predict on {self.observations} observations"
        return (
            f"{self.path}: within {self.error:.1e} of predict on {self.observations} observations "
            "(in units of half the action range)"
        )


def run(path: str | Path, parts: tuple[np.ndarray, ...]) -> np.ndarray:
    """Run an exported policy, by its suffix in onnxruntime (``.onnx``) or in torch.

    :param path: of the file.
    :param parts: the inputs, in their order.
    :raises ExportError: if onnxruntime is missing.
    """
    if Path(path).suffix != ".onnx":
        with th.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            return th.jit.load(str(path))(*map(th.as_tensor, parts)).numpy()
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise ExportError(
            f"running ONNX needs {error.name!r}: pip install 'sb3_pmpo[export]'"
        ) from error
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    return session.run(None, dict(zip(names, parts, strict=True)))[0]


def check(
    path: str | Path,
    model: OffPolicyMPO,
    observations: Any,
    normalize: VecNormalize | None = None,
) -> Check:
    """Compare an exported policy with ``predict``.

    :param path: of the file.
    :param model: that was exported.
    :param observations: ``[B, ...]`` as the environment gives them, or a dict of such.
    :param normalize: the statistics that it was exported with.
    :raises ExportError: if an action is further than :data:`TOLERANCE` from predict's.
    """
    normalize = normalize or model.get_vec_normalize_env()
    seen = observations if normalize is None else normalize.normalize_obs(observations)
    expected, _ = model.predict(seen, deterministic=True)
    found = run(path, DeterministicPolicy(model, normalize).split(observations))
    unit: Any = 1.0
    space = model.action_space
    if isinstance(space, spaces.Box):
        unit = 0.5 * (space.high - space.low)
    error = float(np.max(np.abs(found - expected) / unit))
    if found.shape != expected.shape or not error <= TOLERANCE:
        raise ExportError(
            f"{path} is not the policy: its actions {found.shape} are up to {error:.2e} from "
            f"predict's {expected.shape}, where {TOLERANCE} is allowed"
        )
    return Check(Path(path), len(expected), error, isinstance(space, spaces.Box))
