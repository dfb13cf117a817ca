"""Which form of a model fits into an amount of memory, and with how much context.

For one conversation at context length S, with activations and cache of b bytes per number (4 in
float32, else 2), chunks of C = 1024 prompt tokens, hidden size H and heads h:

    needed(S) = reserve + weights + fixed + S * (kv + per_token) <= memory - system

    system     memory / 8, at most 2 GiB: what else runs on the machine
    reserve    512 MiB: Python, PyTorch, a CUDA context
    weights    `count.weight_bytes`
    kv         cache_width * layers * b
    per_token  H * b                                 embeddings of the whole prompt
               + C * (1 + b)                         attention mask, as flags and as numbers
               + h * (2 * (nope + v) + rope) * b     MLA: keys and values rebuilt in one layer
    fixed      C * (4 H + h * (2 * head + v)) * b    residual stream, queries, attention output
               + C * max(3 * dense, k * (3 * expert + 2 H) + 3 * shared) * b   the larger MLP
               + 8 * vocabulary                      logits of one position and their softmax
               + tiles * patches * (6 * width + 2 * mlp) * b       tower, on the largest tile grid

Fused attention is assumed: no matrix of scores. These are upper estimates of what is alive at once,
computed and not measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vl2.checkpoint.count import (
    WEIGHT_FORMS,
    Scheme,
    grid_tokens,
    kv_bytes_per_token,
    model_shapes,
    weight_bytes,
)
from vl2.checkpoint.report import find_config
from vl2.config import LanguageConfig, VL2Config

RESERVE_BYTES = 512 * 2**20
SYSTEM_SHARE, SYSTEM_BYTES = 8, 2 * 2**30
PREFILL_CHUNK = 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """Memory of one form of a model, in bytes; `max_context` is 0 when not even one token fits."""

    scheme: Scheme
    weights: int
    kv_per_token: int
    fixed: int
    per_token: int
    context: int
    memory: int  # what is left beside the system

    @property
    def kv(self) -> int:
        """Cache at the asked context."""
        return self.context * self.kv_per_token

    @property
    def activations(self) -> int:
        """Everything beside weights and cache at the asked context."""
        return RESERVE_BYTES + self.fixed + self.context * self.per_token

    @property
    def needed(self) -> int:
        """Bytes at the asked context."""
        return self.weights + self.kv + self.activations

    @property
    def fits(self) -> bool:
        """Whether the asked context fits."""
        return self.needed <= self.memory

    @property
    def max_context(self) -> int:
        """Longest context that fits, whatever the model was trained for."""
        left = self.memory - self.weights - RESERVE_BYTES - self.fixed
        return max(0, left // (self.kv_per_token + self.per_token))


def plan_memory(config: VL2Config, memory: int, context: int | None = None) -> list[Budget]:
    """The budget of every scheme, largest weights first.

    Args:
        config: the model.
        memory: bytes of the machine or the card.
        context: tokens of one conversation, pictures and answer included; None takes the model's
            `max_position_embeddings`.

    Raises:
        ValueError: memory or context below 1.
    """
    context = config.language_config.max_position_embeddings if context is None else context
    for name, value in (("memory", memory), ("context", context)):
        if value < 1:
            raise ValueError(f"{name} is {value}: expected at least 1")
    shapes = model_shapes(config)
    language = config.language_config
    return [
        Budget(
            scheme=scheme,
            weights=weight_bytes(shapes, scheme),
            kv_per_token=kv_bytes_per_token(language, scheme.rest),
            fixed=_fixed(config) * scheme.rest + 8 * language.vocab_size,
            per_token=_per_token(language) * scheme.rest + PREFILL_CHUNK * (1 + scheme.rest),
            context=context,
            memory=memory - system_bytes(memory),
        )
        for scheme in WEIGHT_FORMS
    ]


def system_bytes(memory: int) -> int:
    """What is left of a machine's memory for everything else that runs on it."""
    return min(memory // SYSTEM_SHARE, SYSTEM_BYTES)


def plan_model(model: str, memory: int, context: int | None = None) -> dict[str, Any]:
    """What `vl2 plan` shows, as plain data; `model` as for `find_config`.

    Raises:
        ValueError: there is no such model, or memory or context is below 1.
    """
    config, _ = find_config(model)
    budgets = plan_memory(config, memory, context)
    chosen = best(budgets, config.torch_dtype)
    return {
        "model": model,
        "memory": memory,
        "system": system_bytes(memory),
        "context": budgets[0].context,
        "trained_context": config.language_config.max_position_embeddings,
        "reserve": RESERVE_BYTES,
        "prefill_chunk": PREFILL_CHUNK,
        "best": chosen.scheme.name if chosen else None,
        "schemes": [
            {
                "name": budget.scheme.name,
                "bytes_per_weight": budget.scheme.statement,
                "loadable": budget.scheme.loadable,
                "weights": budget.weights,
                "kv_per_token": budget.kv_per_token,
                "kv": budget.kv,
                "activations": budget.activations,
                "needed": budget.needed,
                "fits": budget.fits,
                "max_context": budget.max_context,
            }
            for budget in budgets
        ],
    }


def best(budgets: list[Budget], held: str = "bfloat16") -> Budget | None:
    """The most precise scheme that fits; wider floats than files of dtype `held` add nothing."""
    wide = "float32" if held == "float32" else "bfloat16"
    names = [budget.scheme.name for budget in budgets]
    return next((budget for budget in budgets[names.index(wide) :] if budget.fits), None)


def _per_token(c: LanguageConfig) -> int:
    """Numbers alive per token of context, beside the cache and the mask."""
    if not c.use_mla:
        return c.hidden_size
    nope_and_value = c.qk_nope_head_dim + c.v_head_dim
    rebuilt = c.num_attention_heads * (2 * nope_and_value + c.qk_rope_head_dim)
    return c.hidden_size + rebuilt


def _fixed(config: VL2Config) -> int:
    """Numbers alive whatever the context: one chunk of the decoder and one picture in the tower."""
    c, vision = config.language_config, config.vision_config
    value_dim = c.v_head_dim if c.use_mla else c.head_dim
    attention = 4 * c.hidden_size + c.num_attention_heads * (2 * c.head_dim + value_dim)
    shared = 3 * c.moe_intermediate_size * (c.n_shared_experts or 0)
    expert = 3 * c.moe_intermediate_size + 2 * c.hidden_size
    mlp = max(3 * c.intermediate_size, (c.num_experts_per_tok or 0) * expert + shared)
    tiles = 1 + max(grid.wide * grid.high for grid in grid_tokens(config))
    patch = 6 * vision.width + 2 * vision.mlp_hidden
    return PREFILL_CHUNK * (attention + mlp) + tiles * vision.patches_per_side**2 * patch
