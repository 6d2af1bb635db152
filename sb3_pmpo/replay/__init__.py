"""Replay: n-step windows over any of SB3's buffers, priorities, and ends of cut episodes."""

from sb3_pmpo.core.batch import Batch
from sb3_pmpo.replay.episodes import close_open_episodes, close_other_episodes
from sb3_pmpo.replay.making import adopt_replay_buffer, make_replay_buffer
from sb3_pmpo.replay.prioritized import (
    PrioritizedDictReplayBuffer,
    PrioritizedHerReplayBuffer,
    PrioritizedReplayBuffer,
)
from sb3_pmpo.replay.sampling import Replay

__all__ = [
    "Batch",
    "PrioritizedDictReplayBuffer",
    "PrioritizedHerReplayBuffer",
    "PrioritizedReplayBuffer",
    "Replay",
    "adopt_replay_buffer",
    "close_open_episodes",
    "close_other_episodes",
    "make_replay_buffer",
]
