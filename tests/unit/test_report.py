"""Counts of the released models against the paper and the published files, and memory plans."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from vl2.checkpoint.budget import PREFILL_CHUNK, RESERVE_BYTES, best, plan_memory
from vl2.checkpoint.count import (
    WEIGHT_FORMS,
    count_parameters,
    grid_tokens,
    kv_bytes_per_token,
    model_shapes,
    weight_bytes,
)
from vl2.checkpoint.layout import stored_dtypes
from vl2.checkpoint.load import load_model
from vl2.checkpoint.sizes import format_bytes, parse_bytes
from vl2.checkpoint.skeleton import build_skeleton
from vl2.config import VL2Config
from vl2.model.quantized import default_plan
from vl2.ops.kv_cache import KVCache

GOLDEN = Path(__file__).parents[1] / "golden" / "model"
GIB = 2**30


@pytest.mark.parametrize(
    ("preset", "total", "tensors", "language_active", "active"),
    [
        ("tiny", 3_370_501_440, 2_582, 0.574, 0.99),
        ("small", 16_148_349_504, 5_639, 2.451, 2.88),
        ("base", 27_480_134_248, 6_973, 4.124, 4.56),
    ],
)
def test_released_counts(
    preset: str, total: int, tensors: int, language_active: float, active: float
):
    config = VL2Config.preset(preset)
    shapes = model_shapes(config)
    count = count_parameters(config, shapes)
    assert (count.total, count.tensors) == (total, tensors)
    assert round(count.language_active / 1e9, 3) == language_active
    assert round(count.active / 1e9, 2) == active
    assert count.vision == 428_225_600
    assert count.vision - count.vision_head == 412_987_248
    parts = count.vision + count.projector + count.language
    assert total - parts == 2 * config.language_config.hidden_size  # newline and separator


@pytest.mark.parametrize(
    ("preset", "numbers"), [("tiny", 30_720), ("small", 15_552), ("base", 17_280)]
)
def test_cache_bytes_are_those_of_the_cache(preset: str, numbers: int):
    config = VL2Config.preset(preset).language_config
    assert kv_bytes_per_token(config, 2) == 2 * numbers
    cache = KVCache.empty(config, 1, 1, device="meta", dtype=torch.bfloat16)
    assert sum(layer.nbytes for layer in cache.layers) == 2 * numbers


def test_weight_bytes_of_loaded_models():
    for folder in sorted(GOLDEN.iterdir()):
        config = VL2Config.from_pretrained(folder)
        shapes = model_shapes(config)
        for scheme in WEIGHT_FORMS[:2]:
            state = load_model(folder, dtype=scheme.name).state_dict()
            held = sum(tensor.nbytes for tensor in state.values())
            assert weight_bytes(shapes, scheme) == held, (folder.name, scheme.name)


@pytest.mark.parametrize("preset", ["tiny", "small", "base", "nano", "debug_base"])
def test_quantised_bytes_are_those_of_the_quantised_model(preset: str):
    config = VL2Config.preset(preset)
    shapes = model_shapes(config)
    for scheme in WEIGHT_FORMS[2:]:
        plan = default_plan(build_skeleton(config), scheme.name)
        model = build_skeleton(replace(config, quantization_config=plan))
        dtypes = stored_dtypes(model, torch.bfloat16)
        state = model.state_dict().items()
        held = sum(dtypes[key].itemsize * tensor.numel() for key, tensor in state)
        assert weight_bytes(shapes, scheme) == held, scheme.name


def test_grid_tokens_are_the_released_counts():
    tokens = {(g.wide, g.high): g.tokens for g in grid_tokens(VL2Config.tiny())}
    assert len(tokens) == 23
    assert tokens[1, 1] == 421
    assert tokens[1, 9] == max(tokens.values()) == 2101
    assert (tokens[9, 1], tokens[3, 3], tokens[2, 2]) == (1989, 2017, 1023)


def test_plans_choose_the_most_exact_form_that_fits():
    chosen = {}
    for preset in ("tiny", "small", "base"):
        budgets = plan_memory(VL2Config.preset(preset), GIB)
        for memory in (8, 24, 40, 80):
            for held in ("bfloat16", "float32"):  # float32 adds nothing to files of bfloat16
                budget = best([replace(b, memory=memory * GIB) for b in budgets], held)
                chosen[preset, memory, held] = budget.scheme.name if budget else None
    rows = {
        (preset, held): [chosen[preset, memory, held] for memory in (8, 24, 40, 80)]
        for preset, _, held in chosen
    }
    assert rows["tiny", "bfloat16"] == ["bfloat16"] * 4
    assert rows["tiny", "float32"] == ["bfloat16", *["float32"] * 3]
    assert rows["small", "bfloat16"] == [None, "int8", "bfloat16", "bfloat16"]
    assert rows["small", "float32"] == [None, "int8", "bfloat16", "float32"]
    assert rows["base", "bfloat16"] == [None, "int4", "int8", "bfloat16"]
    assert rows["base", "float32"] == [None, "int4", "int8", "bfloat16"]


def test_longest_context_is_the_last_that_fits():
    config = VL2Config.small()
    for budget in plan_memory(config, 40 * GIB):
        longest = budget.max_context
        if not longest:
            assert not budget.fits
            continue
        assert replace(budget, context=longest).fits
        assert not replace(budget, context=longest + 1).fits
        parts = budget.weights + budget.kv + budget.activations
        assert budget.needed == parts
        assert budget.activations > RESERVE_BYTES


def test_plan_counts_what_the_docstring_says():
    config = VL2Config.small()
    budget = plan_memory(config, 40 * GIB, context=1000)[1]
    h, heads, chunk = 2048, 16, PREFILL_CHUNK
    assert budget.per_token == 2 * (h + heads * (2 * 256 + 64)) + 3 * chunk
    decoder = 4 * h + heads * (2 * 192 + 128)
    mlp = max(3 * 10944, 6 * (3 * 1408 + 2 * h) + 3 * 2 * 1408)
    tower = 10 * 729 * (6 * 1152 + 2 * 4304)
    assert budget.fixed == 2 * (chunk * (decoder + mlp) + tower) + 8 * 102400
    assert budget.kv == 1000 * 31_104


def test_plan_refuses_nonsense():
    with pytest.raises(ValueError, match="context is 0: expected at least 1"):
        plan_memory(VL2Config.tiny(), GIB, context=0)
    with pytest.raises(ValueError, match="memory is -1: expected at least 1"):
        plan_memory(VL2Config.tiny(), -1)


@pytest.mark.parametrize(
    ("text", "count"),
    [("24GiB", 24 * GIB), ("5GB", 5 * 10**9), ("512 MiB", 2**29), ("1.5kib", 1536), ("7B", 7)],
)
def test_sizes_are_read(text: str, count: int):
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "24", "24G", "GiB", "-1GB", "0GB", "1e9 B", "nanGB", "5 GBs"])
def test_sizes_need_a_number_and_a_unit(text: str):
    with pytest.raises(ValueError, match="expected a number and a unit, for instance 24GiB or 5GB"):
        parse_bytes(text)


def test_sizes_are_written():
    assert [format_bytes(n) for n in (0, 1023, 1536, 24 * GIB, 3 * 2**40)] == [
        "0 B", "1023 B", "1.5 KiB", "24.0 GiB", "3.0 TiB",
    ]  # fmt: skip
