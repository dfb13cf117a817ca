"""What a step of the engine tells: news of each sequence, and counters."""

from __future__ import annotations

from dataclasses import dataclass

from vl2.engine.config import Completion
from vl2.engine.sequence import Sequence


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """What a step did for one sequence; `completion` is set when it ended."""

    sequence: Sequence
    delta: str
    completion: Completion | None


@dataclass(kw_only=True, slots=True)
class EngineStats:
    """Counters since the engine began."""

    steps: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    drafted_tokens: int = 0
    accepted_drafts: int = 0
    preemptions: int = 0
    tiles_encoded: int = 0
    pictures_reused: int = 0
