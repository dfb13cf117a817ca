"""Every number of a training run, as data that a YAML file or a recipe function fills in.

Stages, schedules and defaults follow the paper's section 4 and table 2 (arXiv 2412.10302).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from vl2.data.config import DataConfig
from vl2.parallel.config import ParallelConfig
from vl2.train.adamw import LARGEST_BETA
from vl2.train.lora import LoraConfig

StageKind = Literal["align", "pretrain", "sft"]
STAGE_ORDER: tuple[str, ...] = ("align", "pretrain", "sft")
"""A stage starts from a model that is not behind it in this order."""

LANGUAGE_FROZEN = ("vision", "projector", "image_newline", "view_seperator")
TRAINED: dict[str, tuple[str, ...]] = {
    "align": LANGUAGE_FROZEN,
    "pretrain": ("",),
    "sft": ("",),
}
"""Prefixes of the parameters that train in each stage; the tower's unused pool head never does."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InitConfig:
    """Where the run starts: an existing model, or random weights of a named size."""

    model: str | None = None  # folder, hub id, "nano", or the run folder of the stage before
    preset: str | None = None  # a name of `vl2.presets.PRESETS`: random weights
    tokenizer: str | None = None  # folder with tokenizer and processor files; None: the model's
    dtype: Literal["float32", "bfloat16"] = "float32"


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """The optimiser and its learning rate over time."""

    optimizer: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 2e-5
    vision_scale: float = 0.1  # learning rate of the vision tower relative to the rest
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    warmup: int = 0  # steps of a linear rise, in every schedule
    horizon: int | None = None  # steps of the whole schedule; None: the run's steps
    floor: float = 0.0  # where a cosine ends, as a share of the learning rate
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    moments: Literal["float32", "bfloat16"] = "float32"  # AdamW's; never wider than the weights
    weight_decay: float = 0.1
    clip: float = 1.0  # largest norm of the gradient

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("learning_rate", "vision_scale", "clip", "eps"):
            if not getattr(self, name) > 0:
                raise ValueError(
                    f"optim.{name} is {getattr(self, name)}: expected a number above 0"
                )
        if self.warmup < 0:
            raise ValueError(f"optim.warmup is {self.warmup}: expected 0 or more steps")
        if self.moments == "bfloat16":
            self._check_compact_moments()

    def _check_compact_moments(self) -> None:
        if self.optimizer != "adamw":
            raise ValueError(
                f"optim.moments is 'bfloat16' with optim.optimizer {self.optimizer!r}: expected "
                "adamw; give optim.moments=float32 before it"
            )
        if max(self.betas) > LARGEST_BETA:
            raise ValueError(
                f"optim.moments is 'bfloat16' with optim.betas {list(self.betas)}: expected at "
                f"most {LARGEST_BETA}, or moments get stuck; give optim.moments=float32 before it"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class BalanceConfig:
    """How the experts are kept busy."""

    loss_weight: float | None = None  # of the sequence-wise balance loss; None: aux_loss_alpha
    bias_step: float = 0.0  # of the loss-free balancing, once per optimiser step


@dataclass(frozen=True, kw_only=True, slots=True)
class GuardConfig:
    """When a step is thrown away, and what then."""

    spike: float = 6.0  # standard deviations of the window above its mean; 0 turns it off
    window: int = 128  # clean steps that mean and deviation are taken from
    skips_in_a_row: int = 3  # then the run goes back to its last checkpoint, past these batches
    rollbacks: int = 3  # then the run ends


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointConfig:
    """When the state is kept."""

    every: int = 500  # steps; the last step is always kept
    keep: int = 3
    asynchronous: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class ComputeConfig:
    """How the same numbers are computed."""

    device: str = "auto"
    autocast: bool = False  # bfloat16 matrix products on float32 weights
    compile: bool = False  # torch.compile, block by block
    recompute: Literal["none", "selective", "full"] = "none"  # language model's activations
    recompute_vision: Literal["none", "selective", "full"] = "none"
    threads: int | None = None
    deterministic: bool = False  # on a card: slower kernels that give the same bits again


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """One run of one stage."""

    name: str
    stage: StageKind
    steps: int
    out: str = ""  # run folder; empty: runs/<name>
    init: InitConfig = field(default_factory=InitConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    balance: BalanceConfig = field(default_factory=BalanceConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    lora: LoraConfig | None = None
    seed: int = 0
    log_every: int = 10
    tensorboard: bool = False

    def __post_init__(self) -> None:
        """Check what no part can check alone."""
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}: expected at least 1")
        if self.log_every < 1:
            raise ValueError(f"log_every is {self.log_every}: expected at least 1")
        if self.checkpoint.every < 1 or self.checkpoint.keep < 1:
            raise ValueError("checkpoint.every and checkpoint.keep must be at least 1")

    @property
    def folder(self) -> str:
        """The run folder."""
        return self.out or f"runs/{self.name}"
