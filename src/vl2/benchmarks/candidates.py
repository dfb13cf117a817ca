"""The forms of a model that a benchmark compares, side by side in memory as far as they fit."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from vl2.benchmarks.config import (
    FIRST_TO_FIT,
    FORMS,
    QUICK_LAYERS,
    STORED,
    USUAL_FORMS,
    BenchConfig,
)
from vl2.benchmarks.machine import available_memory, has_amx
from vl2.benchmarks.prompts import fitting_processor
from vl2.benchmarks.random_weights import cut_layers, form_skeleton, random_model
from vl2.benchmarks.work import LOOKED_UP
from vl2.checkpoint.count import Shapes, kv_bytes_per_token, model_shapes
from vl2.checkpoint.load import MODEL_DTYPES, load_model
from vl2.checkpoint.report import find_config
from vl2.checkpoint.sizes import format_bytes
from vl2.config import VL2Config
from vl2.engine.config import EngineConfig
from vl2.engine.engine import Engine
from vl2.logs import get_logger
from vl2.model.vl2 import VL2Model
from vl2.processing.processor import Processor

log = get_logger(__name__)

HEADROOM_BYTES = 3 * 2**29
"""Left beside the weights: Python, cache, activations, the official algorithm's logits."""
SEQUENCES = 8
"""Most answers at once."""
QUESTION_TOKENS = 64
"""Room for the text around a picture."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidates:
    """Engines by form, and why the others are missing.

    `read` is the state of each form on the meta device: what its weights weigh, however the engine
    lays them out.
    """

    config: VL2Config
    shapes: Shapes
    engines: Mapping[str, Engine]
    read: Mapping[str, Mapping[str, Tensor]]
    skipped: Mapping[str, str] = field(default_factory=dict)


def gather(bench: BenchConfig, wide: Container[str] = ()) -> Candidates:
    """Build or load the forms of a benchmark.

    Args:
        bench: the model, and the forms that must be there; where it names none, those that do not
            fit are left out.
        wide: forms whose engine answers up to `SEQUENCES` conversations at once.

    Raises:
        ValueError: there is no such model, or its forms do not fit into memory.
    """
    config, processor = find_model(bench)
    shapes = model_shapes(config)
    chosen, skipped = fitting_forms(bench, config, wanted_forms(bench, config), wide)
    if not chosen:
        raise ValueError("; ".join(f"quantization {f}: {why}" for f, why in skipped.items()))
    models: dict[str, VL2Model] = {}
    for form in chosen:
        log.info("building %s with quantization %s", bench.model, form)
        models[form] = build_form(bench, config, form, next(reversed(models.values()), None))
    engines = {
        form: Engine(model, processor, engine_config(bench, config, wide=form in wide))
        for form, model in models.items()
    }
    return Candidates(
        config=config,
        shapes=shapes,
        engines=engines,
        read={form: form_state(bench, config, form) for form in chosen},
        skipped=skipped,
    )


def wanted_forms(bench: BenchConfig, config: VL2Config) -> tuple[str, ...]:
    """Those that are named; else all, or the one that a quantised folder is held in."""
    held = None if bench.is_random else config.quantization_config
    return bench.forms or ((held.scheme,) if held else USUAL_FORMS)


def find_model(bench: BenchConfig) -> tuple[VL2Config, Processor]:
    """The config, cut as the benchmark asks for, and a processor that fits.

    Raises:
        ValueError: there is no such model, or it has fewer layers.
    """
    config, folder = find_config(bench.model)
    if not bench.is_random:
        return config, Processor.from_pretrained(folder or bench.model)
    layers = bench.layers
    if layers is None and bench.quick:
        layers = min(QUICK_LAYERS, config.language_config.num_hidden_layers)
    config = cut_layers(config, layers, QUICK_LAYERS if bench.quick else None)
    return config, fitting_processor(config)


def build_form(
    bench: BenchConfig, config: VL2Config, form: str, other: VL2Model | None = None
) -> VL2Model:
    """The model in one form; `other` is the form before it, whose equal tensors are shared."""
    if bench.is_random:
        shared = other.state_dict() if other is not None else None
        return random_model(config, form, MODEL_DTYPES[dtype_of(bench, form)], shared)
    held = config.quantization_config
    storage = form if form == STORED else None
    scheme = None if form in ("none", STORED) or (held and held.scheme == form) else form
    dtype = dtype_of(bench, form)
    return load_model(bench.model, dtype, "cpu", scheme, storage_dtype=storage)


def form_state(bench: BenchConfig, config: VL2Config, form: str) -> dict[str, Tensor]:
    """Tensors of a form by key, without memory."""
    if bench.is_random:
        config = replace(config, quantization_config=None)
    model, dtypes = form_skeleton(config, form, MODEL_DTYPES[dtype_of(bench, form)])
    state = model.state_dict()
    return {k: torch.empty(state[k].shape, dtype=d, device="meta") for k, d in dtypes.items()}


def engine_config(bench: BenchConfig, config: VL2Config, *, wide: bool = False) -> EngineConfig:
    """An engine for one conversation or for `SEQUENCES`, with a cache that the measurements fill.

    Room for two more keeps the prompts of decoding cached while others come and go.
    """
    pictures = 2 * config.tokens_per_side * (config.tokens_per_side + 1) + 1
    longest = max(bench.prompt_tokens, pictures + QUESTION_TOKENS) + bench.decoded + 1
    sequences, size = SEQUENCES if wide else 1, EngineConfig().block_size
    return EngineConfig(
        max_num_seqs=sequences,
        max_model_len=longest,
        num_blocks=(sequences + 2) * -(-longest // size),
        block_size=size,
    )


def dtype_of(bench: BenchConfig, form: str) -> str:
    """What a form's floats are."""
    if form in ("none", STORED):
        return bench.dtype
    return bench.quantized_dtype or ("bfloat16" if has_amx() else bench.dtype)


def form_bytes(state: Mapping[str, Tensor]) -> int:
    """Bytes of all weights in a form, from its `form_state`."""
    return sum(tensor.nbytes for tensor in state.values())


def fitting_forms(
    bench: BenchConfig, config: VL2Config, wanted: Iterable[str], wide: Container[str] = ()
) -> tuple[list[str], dict[str, str]]:
    """Forms that fit together, one after the other of `FIRST_TO_FIT`, and why others do not.

    Raises:
        ValueError: a form that `bench` names does not fit.
    """
    free = available_memory()
    chosen, skipped, taken = [], {}, HEADROOM_BYTES
    tables: set[torch.dtype] = set()
    for form in sorted(set(wanted), key=FIRST_TO_FIT.index):
        dtype = dtype_of(bench, form)
        state = form_state(bench, config, form)
        table = state[LOOKED_UP]
        size = form_bytes(state)
        size += _cache_bytes(config, engine_config(bench, config, wide=form in wide), dtype)
        if bench.is_random and table.dtype in tables:
            size -= table.nbytes  # forms of random weights share it
        if free is None or taken + size <= free:
            chosen.append(form)
            tables.add(table.dtype)
            taken += size
            continue
        skipped[form] = (
            f"{format_bytes(size)} in addition to {format_bytes(taken)} do not fit into the "
            f"{format_bytes(free)} that are free: use --layers, or name fewer precisions with "
            "--quantization"
        )
        if bench.forms:
            raise ValueError(f"quantization {form}: {skipped[form]}")
    return sorted(chosen, key=FORMS.index), skipped


def _cache_bytes(config: VL2Config, engine: EngineConfig, dtype: str) -> int:
    per_token = kv_bytes_per_token(config.language_config, _itemsize(dtype))
    return (engine.num_blocks or 0) * engine.block_size * per_token


def _itemsize(dtype: str) -> int:
    return MODEL_DTYPES[dtype].itemsize
