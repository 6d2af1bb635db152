"""A function of a batch as CUDA graphs: one launch in the place of hundreds."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Hashable
from typing import Any, Generic, NamedTuple, Protocol, Self, TypeVar

import torch as th

#: Calls that run as usual before one is captured: what is made at first use, such as the state of
#: an optimiser, must be there by then.
WARM_UP = 3


class TensorTree(Protocol):
    """Tensors under names, in an order that does not change."""

    def map(self, function: Callable[[th.Tensor], th.Tensor]) -> Self:
        """Apply a function to each tensor."""
        ...


B = TypeVar("B", bound=TensorTree)
K = TypeVar("K", bound=Hashable)
R = TypeVar("R")


class _Captured(NamedTuple):
    """A graph, what it reads its batch from, and what the function returned."""

    graph: th.cuda.CUDAGraph
    inputs: list[th.Tensor]
    outputs: object


class CudaGraphs(Generic[B, K, R]):
    """Captures a function of a batch, once for each plan and shape, and replays it from then on.

    A replay reads the batch, the tensors that the function read, and new random numbers; all else,
    Python's numbers and branches included, is as it was at the capture. What it returns is
    overwritten by the next call. Where it cannot be captured, a warning says so, and it runs as
    usual.

    :param function: of a batch and of a plan; all that it does, it does to tensors on the GPU.
    :param device: the GPU.
    """

    def __init__(self, function: Callable[[B, K], R], device: th.device) -> None:
        self._function = function
        self._device = device
        self._stream = th.cuda.Stream(device)
        self._refused = False
        self.clear()

    def clear(self) -> None:
        """Forget the graphs: the next calls capture anew."""
        self._calls: Counter[Hashable] = Counter()
        self._captured: dict[Hashable, _Captured] = {}

    def __call__(self, batch: B, plan: K) -> R:
        """Run the function."""
        with th.cuda.device(self._device):  # of several, another one may be the current one
            given = _tensors(batch)
            key = (plan, tuple(x.shape for x in given))
            if key not in self._captured:
                self._calls[key] += 1
                if self._refused or self._calls[key] <= WARM_UP or not self._capture(key, batch):
                    return self._run(batch, plan)
            graph, inputs, outputs = self._captured[key]
            th._foreach_copy_(inputs, given)
            graph.replay()
            return outputs  # type: ignore[return-value]  # the function's own

    def _run(self, batch: B, plan: K) -> R:
        """Run it on the stream of the capture, to which its gradients then belong."""
        self._stream.wait_stream(th.cuda.current_stream())
        with th.cuda.stream(self._stream):
            result = self._function(batch, plan)
        th.cuda.current_stream().wait_stream(self._stream)
        return result

    def _capture(self, key: tuple[K, Any], batch: B) -> bool:
        """Capture the function, and say whether that went well."""
        stream = th.cuda.current_stream()
        random = th.cuda.default_generators[th.cuda.current_device()]
        numbers = random.get_state()
        inputs, graph = batch.map(th.clone), th.cuda.CUDAGraph()
        try:
            with th.cuda.graph(graph, stream=self._stream):
                outputs = self._function(inputs, key[0])
        except RuntimeError as error:
            # Stream and generator believe in the capture still: another generator, which earlier
            # graphs do not know, takes the place of this one.
            th.cuda.set_stream(stream)
            fresh = th.Generator(random.device)
            fresh.set_state(numbers)
            random.graphsafe_set_state(fresh.graphsafe_get_state())
            self.clear()
            self._refused = True
            warnings.warn(
                "compile=True runs without CUDA graphs here, as the update cannot be captured; a "
                "labeller, features extractor or optimiser that waits for the GPU is the usual "
                f"cause: {error}",
                stacklevel=2,
            )
            return False
        self._captured[key] = _Captured(graph, _tensors(inputs), outputs)
        return True


def _tensors(tree: TensorTree) -> list[th.Tensor]:
    found: list[th.Tensor] = []

    def keep(x: th.Tensor) -> th.Tensor:
        found.append(x)
        return x

    tree.map(keep)
    return found


def is_capturable(optimizer: th.optim.Optimizer) -> bool:
    """Say whether an optimiser can count on the GPU, as torch's Adam, AdamW and RMSprop can."""
    return all("capturable" in group for group in optimizer.param_groups)


def has_plain_rate(optimizer: th.optim.Optimizer) -> bool:
    """Say whether a learning rate is a number of Python's, which a graph would not read again."""
    return not all(isinstance(group["lr"], th.Tensor) for group in optimizer.param_groups)


def set_capturable(optimizer: th.optim.Optimizer, device: th.device | None) -> None:
    """Keep learning rates and step counts in tensors on the GPU, where a graph can read them.

    :param optimizer: new, or with a state that it has loaded.
    :param device: the GPU; None for rates in Python, as usual.
    """
    for group in optimizer.param_groups:
        rate = float(group["lr"])
        group["lr"] = rate if device is None else th.tensor(rate, device=device)
        if "capturable" in group:
            group["capturable"] = device is not None
    for state in optimizer.state.values():
        if device is not None and isinstance(state.get("step"), th.Tensor):
            state["step"] = state["step"].to(device)


def set_learning_rate(group: dict[str, object], rate: th.Tensor | float) -> None:
    """Set the learning rate of a parameter group; in place where a graph reads it."""
    if isinstance(group["lr"], th.Tensor):
        group["lr"].fill_(rate.squeeze() if isinstance(rate, th.Tensor) else rate)
    else:
        group["lr"] = float(rate)
