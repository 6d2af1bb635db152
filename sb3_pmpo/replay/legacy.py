"""Classes that buffers saved by version 0.1 name: today they only store, and windows do the rest.

``sb3_pmpo.buffers`` of 0.1 is this module now.
"""

from __future__ import annotations

from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer


class NStepDictReplayBuffer(DictReplayBuffer):
    """A DictReplayBuffer, as its storage was in 0.1."""


class MemoryEfficientNStepReplayBuffer(ReplayBuffer):
    """A ReplayBuffer with ``optimize_memory_usage``, as its storage was in 0.1."""
