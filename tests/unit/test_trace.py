"""Traces: what the engine records is what a plain forward pass does, and changes no token."""

import asyncio
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import ImageOps
from tests.unit.small_engines import ATTENTION, MIXED, engine_of, picture, random_model, user

from vl2.engine import model_runner
from vl2.engine.async_engine import AsyncEngine
from vl2.engine.config import Completion, SamplingParams
from vl2.engine.engine import Engine
from vl2.engine.trace import view_tokens
from vl2.geometry import TileGrid, padded_area
from vl2.model.adaptor import arrange_tokens
from vl2.model.attention import AttentionContext, LatentAttention
from vl2.model.vl2 import VL2Model
from vl2.ops.rope import apply_rope, rope_tables

TOKENS = {"max_tokens": 9, "ignore_eos": True}
TRACED, PLAIN = SamplingParams(trace=True, **TOKENS), SamplingParams(**TOKENS)
EVERY_ROW = 1e-5


@pytest.fixture(scope="module", params=ATTENTION)
def model(request: pytest.FixtureRequest) -> VL2Model:
    return random_model(request.param)


def keys_and_queries(attention, x, context):
    """Of all heads [heads, t, d], keys rebuilt without what serves a cache."""
    config = attention.config
    if isinstance(attention, LatentAttention):
        q_nope, q_rope = attention._queries(attention.q_proj(x), context)
        rows = attention._latent(attention.kv_a_proj_with_mqa(x), context)
        latent, rope = rows.split([attention.rank, config.qk_rope_head_dim], dim=-1)
        heads = config.num_attention_heads
        nope = attention.kv_b_proj(latent).unflatten(-1, (heads, -1))[..., : q_nope.shape[-1]]
        key = torch.cat((nope, rope[:, :, None].expand(-1, -1, heads, -1)), dim=-1)
        query = torch.cat((q_nope, q_rope), dim=-1)
    else:
        query, key = (
            apply_rope(proj(x).unflatten(-1, (-1, config.head_dim)), context.cos, context.sin)
            for proj in (attention.q_proj, attention.k_proj)
        )
        key = key.repeat_interleave(query.shape[2] // key.shape[2], dim=2)
    return query[0].transpose(0, 1), key[0].transpose(0, 1)


@torch.inference_mode()
def reference(engine: Engine, inputs, answer: Completion):
    """Experts [t, layers, k] and attention [t, t], mean over heads and layers, of all rows."""
    ids = torch.cat((inputs.input_ids, torch.tensor(answer.token_ids[:-1])))[None]
    mask = torch.nn.functional.pad(inputs.images_seq_mask, (0, len(answer.token_ids) - 1))[None]
    language = engine.model.language
    out = engine.model(
        ids, inputs.images[None], mask, inputs.images_spatial_crop[None], keep_states=True
    ).language
    cos, sin = rope_tables(torch.arange(ids.shape[1])[None], language.config)
    context = AttentionContext(cos=cos, sin=sin)
    unseen = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).triu(1)
    weights = []
    for layer, state in zip(language.model.layers, out.hidden_states, strict=False):
        attention = layer.self_attn
        query, key = keys_and_queries(attention, layer.input_layernorm(state), context)
        scores = (query @ key.transpose(1, 2) * attention.scale).masked_fill(unseen, -torch.inf)
        weights.append(scores.softmax(-1).mean(0))
    experts = torch.stack([routing.experts for routing in out.routing], dim=1)
    return experts.numpy(), torch.stack(weights).mean(0).numpy()


def check(engine: Engine, inputs, answer: Completion) -> None:
    """A trace against the reference."""
    trace = answer.trace
    experts, weights = reference(engine, inputs, answer)
    first = len(inputs.input_ids) - 1
    assert trace.shape.layers == (1,)
    assert np.array_equal(trace.token_experts, experts[first:])
    assert "".join(answer.text[a:b] for a, b in trace.spans) == answer.text
    places = inputs.images_seq_mask.nonzero()[:, 0].numpy()
    side = engine.processor.layout.side
    assert len(trace.pictures) == len(inputs.image_sizes)
    for seen, size in zip(trace.pictures, inputs.image_sizes, strict=True):
        overview, mosaic = view_tokens(side, seen.grid, global_first=trace.shape.global_first)
        mine, places = np.split(places, [overview.size + mosaic.size + side + mosaic.shape[0] + 1])
        assert np.abs(seen.overview - weights[first:][:, mine[overview]]).max() < EVERY_ROW
        assert np.abs(seen.mosaic - weights[first:][:, mine[mosaic]]).max() < EVERY_ROW
        assert seen.sent == size
        tiles = [overview]
        for y in range(seen.grid.high):
            for x in range(seen.grid.wide):
                tiles.append(mosaic[y * side : (y + 1) * side, x * side : (x + 1) * side])
        for tile, counts in zip(tiles, seen.tile_experts, strict=True):
            chosen = experts[mine[tile.ravel()], 0]
            assert counts.tolist() == [
                np.bincount(chosen.ravel(), minlength=counts.shape[1]).tolist()
            ]
    assert len(places) == 0


@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"max_num_batched_tokens": 37},  # prompts in pieces
        {"num_blocks": 24, "max_model_len": 380, "max_num_seqs": 4},  # some give up their blocks
        {"speculative_tokens": 3},
        {"max_num_seqs": 1, "block_size": 3},
    ],
)
def test_a_trace_is_what_a_plain_pass_does(model, sizes):
    engine = engine_of(model, **sizes)
    plain = engine.generate(MIXED, PLAIN)
    mixed = [TRACED, TRACED, PLAIN, TRACED]
    traced = engine.generate(MIXED, mixed)
    assert [a.token_ids for a in traced] == [a.token_ids for a in plain]
    assert [a.trace is None for a in traced] == [False, False, True, False]
    for messages, params, answer in zip(MIXED, mixed, traced, strict=True):
        if params.trace:
            check(engine, engine.processor(messages), answer)


def test_traced_answers_run_beside_a_batch_that_decodes_on_a_card(model, monkeypatch):
    plain = engine_of(model).generate(MIXED, PLAIN)
    monkeypatch.setattr(model_runner, "decodes_together", lambda device: True)
    engine = engine_of(model)
    traced = engine.generate(MIXED, [TRACED, PLAIN, TRACED, PLAIN])
    assert [a.token_ids for a in traced] == [a.token_ids for a in plain]
    for place in (0, 2):
        check(engine, engine.processor(MIXED[place]), traced[place])


def test_a_shared_prompt_hides_no_row_of_a_trace(model):
    engine = engine_of(model, block_size=4)
    for params in (PLAIN, TRACED, PLAIN, TRACED):
        [answer] = engine.generate([MIXED[1]], params)
        assert (answer.usage.cached_tokens == 0) or not params.trace
        if params.trace:
            check(engine, engine.processor(MIXED[1]), answer)
    assert engine.generate([MIXED[1]], PLAIN)[0].usage.cached_tokens > 0


def test_several_answers_and_streams_have_a_trace_each(model):
    engine = engine_of(model)
    params = replace(TRACED, n=2, temperature=1.0, seed=1)
    inputs = engine.processor(MIXED[1])
    for answer in engine.generate([inputs], params):
        check(engine, inputs, answer)

    async def stream() -> list[Completion]:
        async with AsyncEngine(engine) as answers:
            return await answers.generate(inputs, params)

    for answer in asyncio.run(stream()):
        check(engine, inputs, answer)


def test_a_model_without_experts_has_attention(model):
    config = model.config
    language = replace(config.language_config, n_routed_experts=None, n_shared_experts=None)
    dense = VL2Model(replace(config, language_config=language))
    dense.init_weights(torch.Generator().manual_seed(1))
    [answer] = engine_of(dense).generate([MIXED[1]], TRACED)
    assert answer.trace.token_experts.shape == (9, 0, 0)
    assert answer.trace.pictures[0].tile_experts.shape[1:] == (0, 0)
    assert (answer.trace.pictures[0].overview > 0).all()


def test_a_model_that_bytes_cannot_number_is_refused(model):
    engine = engine_of(model)
    shape = replace(engine._admission.trace, experts=300)
    engine._admission = replace(engine._admission, trace=shape)
    [answer] = engine.generate([user("Hi")], TRACED)
    assert answer.finish_reason == "error"
    assert "300" in answer.error
    assert engine.generate([user("Hi")], PLAIN)[0].error is None


@pytest.mark.parametrize("global_first", [True, False])
@pytest.mark.parametrize(("wide", "high"), [(1, 1), (3, 2), (1, 4)])
def test_views_are_those_that_the_model_lays_out(wide, high, global_first):
    side, grid = 4, TileGrid(wide=wide, high=high)
    tokens = torch.arange(grid.tiles * side**2, dtype=torch.float32).view(grid.tiles, side**2, 1)
    laid = arrange_tokens(
        tokens,
        grid,
        newline=torch.tensor([-1.0]),
        separator=torch.tensor([-2.0]),
        global_first=global_first,
    )[:, 0].numpy()
    overview, mosaic = view_tokens(side, grid, global_first=global_first)
    assert laid[overview].ravel().tolist() == list(range(side**2))
    for number in range(grid.local_tiles):
        y, x = divmod(number, wide)
        tile = laid[mosaic[y * side : (y + 1) * side, x * side : (x + 1) * side]]
        first = (number + 1) * side**2
        assert tile.ravel().tolist() == list(range(first, first + side**2))


@pytest.mark.parametrize("size", [(200, 90), (90, 300), (64, 64), (1001, 333), (7, 6)])
@pytest.mark.parametrize("canvas", [(64, 64), (192, 64), (128, 256)])
def test_a_picture_lies_on_its_canvas_where_it_was_padded(size, canvas):
    white = ImageOps.pad(picture(*size).point(lambda _: 255), canvas, color=(0, 0, 0))
    assert padded_area(size, canvas) == white.getbbox()


def test_a_trace_that_would_be_too_large_is_refused(model):
    """By what the answer may have, before anything runs; without a trace it is answered."""
    engine, talk = engine_of(model), user("a", picture(50, 50))
    [fits] = engine.generate([talk], replace(TRACED, max_tokens=2))
    places = fits.usage.image_tokens
    shape = engine._admission.trace
    shape.check(2**25 // places, places)
    with pytest.raises(ValueError, match="give a smaller max_tokens"):
        shape.check(2**25 // places + 1, places)
