"""The settings of `vl2 serve` that are given as NAME=VALUE."""

from __future__ import annotations

from dataclasses import dataclass, field

from vl2.engine.config import EngineConfig
from vl2.serve.config import Limits


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Limits of the server and sizes of the engine."""

    limits: Limits = field(default_factory=Limits)
    engine: EngineConfig = field(default_factory=EngineConfig)
