"""What a run will do, told before it does it: parts that train, memory, FLOPs.

Memory of one device, in bytes, for P parameters of which T train, in b bytes each:

    weights      P b
    gradients    T b
    moments      2 T b        AdamW; Muon holds one
    logits       1024 * vocabulary * 8            one chunk of the loss, twice in float32
    activations  micro_batch * sequence_length * layers * hidden * b * factor

with a factor of 2 when everything is recomputed, 18 selectively and 34 without: the usual counts of
stored numbers per layer (arXiv 2205.05198, section 4), attention without its scores. Estimates for
planning, not measured.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from torch import nn

from vl2.checkpoint.count import count_parameters, model_shapes
from vl2.config import VL2Config
from vl2.train.config import TrainConfig
from vl2.train.metrics import step_flops

STORED = {"none": 34, "selective": 18, "full": 2}
WIDTHS = {"float32": 4, "bfloat16": 2}


def part_of(name: str) -> str:
    """The part of the model that a parameter belongs to, for listings."""
    first = name.split(".")[0]
    return "specials" if first in ("image_newline", "view_seperator") else first


def trained_parts(module: nn.Module) -> dict[str, dict[str, int]]:
    """Numbers that train and that are frozen, by part of the model."""
    trained: Counter[str] = Counter()
    frozen: Counter[str] = Counter()
    for name, parameter in module.named_parameters():
        (trained if parameter.requires_grad else frozen)[part_of(name)] += parameter.numel()
    return {"trained": dict(trained), "frozen": dict(frozen)}


def estimate(
    config: TrainConfig, model: VL2Config, parts: Mapping[str, Mapping[str, int]]
) -> dict[str, Any]:
    """Memory by part, FLOPs of a step, and tokens of the run."""
    width = WIDTHS[config.init.dtype]
    trained, frozen = (sum(parts[kind].values()) for kind in ("trained", "frozen"))
    language, data = model.language_config, config.data
    tokens = data.batch_size * data.sequence_length
    activations = (
        data.micro_batch
        * data.sequence_length
        * language.num_hidden_layers
        * language.hidden_size
        * width
        * STORED[config.compute.recompute]
    )
    memory = {
        "weights": (trained + frozen) * width,
        "gradients": trained * width,
        "moments": trained * width * (1 if config.optim.optimizer == "muon" else 2),
        "logits": 1024 * language.vocab_size * 8,
        "activations": activations,
    }
    active = count_parameters(model, model_shapes(model)).active
    return {
        "parameters": {"trained": trained, "frozen": frozen, "active_per_token": active},
        "memory_bytes": {**memory, "total": sum(memory.values())},
        "flops_per_step": step_flops(model, active, tokens, data.sequence_length),
        "tokens_per_step": tokens,
        "tokens_of_the_run": tokens * config.steps,
    }
