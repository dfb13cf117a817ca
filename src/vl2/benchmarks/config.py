"""What a benchmark measures: the model, its forms, and how often."""

from __future__ import annotations

from dataclasses import dataclass

from vl2.presets import PRESETS

BENCHES = ("decode", "prefill", "vision", "ttft", "batch", "memory", "summary")
STORED = "bfloat16"
"""Matrices as released files hold them, under the arithmetic of the form that is not quantised."""
FORMS = ("none", STORED, "int8", "float8", "int4")
"""How weights are held, most bytes first; none: as the model computes."""
USUAL_FORMS = ("none", STORED, "int8", "int4")
"""Those that are measured where none is named: float8 is for cards."""
FIRST_TO_FIT = ("int4", "float8", "int8", "none", STORED)
"""Whose turn it is where memory is short."""
QUICK_LAYERS = 2
"""Layers of both towers in a quick run: one dense and one of experts."""
QUICK_ROUNDS = 3
QUICK_TOKENS = 8
QUICK_PROMPT = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchConfig:
    """One benchmark.

    Attributes:
        model: tiny, small, base (random weights), nano, a model folder or a hub id.
        random_weights: fill also a folder's model, or nano, with random weights.
        forms: those of `FORMS` to measure; None takes all of `USUAL_FORMS` that fit into memory.
        dtype: floats of the form that is not quantised, activations too; those of `STORED` but
            for its matrices.
        quantized_dtype: floats beside int8 and int4 weights, activations too; None is bfloat16, as
            released checkpoints have it, where the CPU multiplies it itself (AMX), else `dtype`.
        layers: decoder layers to keep, at full width; None keeps all.
        quick: few rounds, and two layers of both towers where weights are random.
        rounds: how often everything is measured; None takes 5, quick 3.
        tokens: decoded tokens of one measurement; None takes 32, quick 8.
        prompt: tokens of a text prompt, and cached tokens that a decoded one attends to; None
            takes 480, about a picture of one tile and a question, quick 256.
    """

    model: str = "tiny"
    random_weights: bool = False
    forms: tuple[str, ...] | None = None
    dtype: str = "float32"
    quantized_dtype: str | None = None
    layers: int | None = None
    quick: bool = False
    rounds: int | None = None
    tokens: int | None = None
    prompt: int | None = None

    def __post_init__(self) -> None:
        """Check the values and what they mean together."""
        for form in self.forms or ():
            _one_of("quantization", form, FORMS)
        _one_of("dtype", self.dtype, ("float32", "bfloat16"))
        if self.quantized_dtype is not None:
            _one_of("quantized-dtype", self.quantized_dtype, ("float32", "bfloat16"))
        for name in ("layers", "rounds", "tokens", "prompt"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}: expected at least 1")
        if not self.is_random and self.layers is not None:
            raise ValueError(
                f"layers is {self.layers} but {self.model} has weights of its own, which are not "
                "cut: add --random-weights"
            )

    @property
    def is_random(self) -> bool:
        """Whether the weights are made up; those of a released size always are."""
        return self.random_weights or (self.model in PRESETS and self.model != "nano")

    @property
    def counted_rounds(self) -> int:
        """Measurements of each figure."""
        return self.rounds or (QUICK_ROUNDS if self.quick else 5)

    @property
    def decoded(self) -> int:
        """Tokens between the two ends of one measurement of decoding."""
        return self.tokens or (QUICK_TOKENS if self.quick else 32)

    @property
    def prompt_tokens(self) -> int:
        """Tokens of a text prompt."""
        return self.prompt or (QUICK_PROMPT if self.quick else 480)


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}: expected one of {', '.join(allowed)}")
