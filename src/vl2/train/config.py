"""Every number of a training run, as data that a YAML file or a recipe function fills in.

Stages, schedules and defaults follow the paper's section 4 and table 2 (arXiv 2412.10302).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from vl2.data.config import DataConfig
from vl2.parallel.config import ParallelConfig
from vl2.ranges import Range, check_ranges
from vl2.train.adamw import LARGEST_BETA
from vl2.train.lora import LoraConfig

StageKind = Literal["align", "pretrain", "sft"]
STAGE_ORDER: tuple[str, ...] = ("align", "pretrain", "sft")
"""The order of the stages: a stage does not start from a model of a later stage."""

LANGUAGE_FROZEN = ("vision", "projector", "image_newline", "view_seperator")
LEAST_WINDOW = 32
"""Clean steps before a spike can be told from the ordinary."""
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
    learning_rate: Annotated[float, Range(above=0, most=1)] = 2e-5
    # learning rate of the vision tower relative to the rest
    vision_scale: Annotated[float, Range(above=0, most=1000)] = 0.1
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    warmup: Annotated[int, Range(least=0)] = 0  # steps of a linear rise, in every schedule
    # steps of the whole schedule; None: the run's steps
    horizon: Annotated[int | None, Range(least=1)] = None
    # last steps of a constant schedule, in which the learning rate falls in a straight line
    decay: Annotated[int, Range(least=0)] = 0
    # where a cosine or a decay ends, as a share of the learning rate
    floor: Annotated[float, Range(least=0, most=1)] = 0.0
    betas: Annotated[tuple[float, float], Range(least=0, below=1)] = (0.9, 0.95)
    eps: Annotated[float, Range(above=0, most=1)] = 1e-8
    moments: Literal["float32", "bfloat16"] = "float32"  # AdamW's; never wider than the weights
    weight_decay: Annotated[float, Range(least=0, most=10)] = 0.1
    clip: Annotated[float, Range(above=0)] = 1.0  # largest norm of the gradient

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_ranges(self)
        if self.decay and self.schedule != "constant":
            raise ValueError(
                f"optim.decay is {self.decay} with optim.schedule {self.schedule!r}: expected "
                "constant, the only schedule that it belongs to, or give optim.decay=0"
            )
        if len(self.betas) != 2:
            raise ValueError(f"betas is {list(self.betas)}: expected 2 numbers")
        if self.moments == "bfloat16":
            self._check_compact_moments()

    def _check_compact_moments(self) -> None:
        if self.optimizer != "adamw":
            raise ValueError(
                f"optim.moments is 'bfloat16' with optim.optimizer {self.optimizer!r}: expected "
                "adamw, or give optim.moments=float32"
            )
        if max(self.betas) > LARGEST_BETA:
            raise ValueError(
                f"optim.moments is 'bfloat16' with optim.betas {list(self.betas)}: expected at "
                f"most {LARGEST_BETA}, or moments get stuck; or give optim.moments=float32"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class BalanceConfig:
    """Balance loss and bias step, which keep the experts equally busy."""

    # of the sequence-wise balance loss; None: aux_loss_alpha
    loss_weight: Annotated[float | None, Range(least=0, most=1000)] = None
    # of the loss-free balancing, once per optimiser step
    bias_step: Annotated[float, Range(least=0, most=1)] = 0.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_ranges(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class GuardConfig:
    """When a step is thrown away, and what happens then."""

    # standard deviations of the window above its mean; 0 turns it off
    spike: Annotated[float, Range(least=0)] = 6.0
    # clean steps that mean and deviation are taken from; fewer than the least are no measure
    window: Annotated[int, Range(least=LEAST_WINDOW)] = 128
    # bad steps, then the run goes back to its last checkpoint and skips their batches
    skips_in_a_row: Annotated[int, Range(least=1)] = 3
    rollbacks: Annotated[int, Range(least=0)] = 3  # one more ends the run

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_ranges(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointConfig:
    """When the state is kept."""

    every: Annotated[int, Range(least=1)] = 500  # steps; the last step is always kept
    keep: Annotated[int, Range(least=1)] = 3
    asynchronous: bool = True

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_ranges(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class ComputeConfig:
    """Device, precision, compiler and recomputing."""

    device: str = "auto"
    autocast: bool = False  # bfloat16 matrix products on float32 weights
    compile: bool = False  # torch.compile, block by block
    recompute: Literal["none", "selective", "full"] = "none"  # language model's activations
    recompute_vision: Literal["none", "selective", "full"] = "none"
    threads: Annotated[int | None, Range(least=1, most=1024)] = None
    deterministic: bool = False  # on a card: slower kernels that give the same bits again

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_ranges(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """One run of one stage."""

    name: str
    stage: StageKind
    steps: Annotated[int, Range(least=1)]
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
    seed: Annotated[int, Range(least=0, most=2**32 - 1)] = 0  # as numpy takes them
    log_every: Annotated[int, Range(least=1)] = 10
    tensorboard: bool = False

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_ranges(self)

    @property
    def folder(self) -> str:
        """The run folder."""
        return self.out or f"runs/{self.name}"
