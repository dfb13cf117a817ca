"""Sizes that EngineConfig leaves open: fixed on a CPU, a share of free memory on a card."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.small_engines import ATTENTION, engine_of, random_model, user

from vl2.config import VL2Config
from vl2.engine import pool_size
from vl2.engine.config import EngineConfig, SamplingParams
from vl2.engine.pool_size import GIB, StepMemory, profile_steps, share_memory

MIB = 2**20


def row_bytes(preset: str) -> int:
    language = VL2Config.preset(preset).language_config
    return language.cache_width * language.num_hidden_layers * 2


@settings(max_examples=100, deadline=None)
@given(
    free=st.integers(0, 200 * GIB),
    prompts=st.integers(0, 8 * GIB),
    answer=st.integers(0, 200 * MIB),
    context=st.integers(2, 20_000),
    block_size=st.sampled_from([1, 16, 100]),
    seqs=st.none() | st.integers(1, 2000),
)
def test_pool_and_steps_stay_within_the_share(free, prompts, answer, context, block_size, seqs):
    config = EngineConfig(block_size=block_size, max_num_seqs=seqs)
    row, least = row_bytes("tiny"), -(-context // block_size)
    steps = StepMemory(prompts, answer)

    def size(free: int):
        return share_memory(free, steps, config, row=row, context=context)

    try:
        found = size(free)
    except ValueError:
        assert prompts + (seqs or 1) * answer + least * block_size * row > 0.9 * free - 1
        return
    taken = found.num_blocks * block_size * row + prompts + found.max_num_seqs * answer
    assert taken <= 0.9 * free
    assert least <= found.num_blocks <= 1024 * least
    assert found.max_num_seqs == (seqs or found.max_num_seqs) >= 1
    assert found.max_num_seqs <= (seqs or 256)
    if seqs is None:  # whoever runs beyond the 8 of every machine has a full context
        assert found.max_num_seqs <= max(8, found.num_blocks // least)
    more = size(free + GIB)
    assert more.max_num_seqs >= found.max_num_seqs


def test_the_pool_of_tiny_fills_a_large_card():
    """139 GiB with weights of 6.3: what was 8 answers and 2 GiB is 256 answers and 100 GiB."""
    steps = StepMemory(2 * GIB, 64 * MIB)
    found = share_memory(132 * GIB, steps, EngineConfig(), row=row_bytes("tiny"), context=4096)
    assert found.max_num_seqs == 256
    assert 95 * GIB < found.num_blocks * 16 * row_bytes("tiny") < 105 * GIB


def test_a_small_card_gets_fewer_answers_instead_of_a_refusal():
    steps = StepMemory(GIB, 512 * MIB)
    row = row_bytes("tiny")
    found = share_memory(4 * GIB, steps, EngineConfig(), row=row, context=4096)
    assert found.max_num_seqs == 3
    with pytest.raises(
        ValueError, match=r"^4.0 GiB of the card are free: steps of 8 answers take 5.*; give"
    ):
        share_memory(4 * GIB, steps, EngineConfig(max_num_seqs=8), row=row, context=4096)


@pytest.mark.parametrize("attention", sorted(ATTENTION))
@pytest.mark.parametrize("tokens", [5, 40, 100, 107])
def test_the_profiled_steps_run_at_any_size(attention, tokens, monkeypatch):
    model, seen = random_model(attention), []
    encode, step = model.encode_images, model.language.step
    monkeypatch.setattr(model, "encode_images", lambda *a: seen.append(a[0].shape[1]) or encode(*a))
    monkeypatch.setattr(
        model.language, "step", lambda x, *a: seen.append(x.shape[1]) or step(x, *a)
    )
    peaks = iter([7, 5, 12])

    def peak(run, device):
        run()
        return next(peaks)

    config = EngineConfig(max_num_batched_tokens=tokens, max_tiles_per_batch=3)
    assert profile_steps(model, config, 50, peak) == StepMemory(7, 3)
    assert seen == [3, tokens, 4]


def test_a_cpu_has_the_fixed_sizes():
    model = random_model()
    engine = engine_of(model)
    assert engine.max_num_seqs == 8
    least = model.config.language_config.max_position_embeddings // 16
    assert engine.blocks.num_blocks == 8 * least
    assert engine_of(model, max_num_seqs=3).blocks.num_blocks == 3 * least
    assert engine_of(model, max_num_seqs=3).max_num_seqs == 3
    assert engine_of(model, num_blocks=20 * least).max_num_seqs == 8


@pytest.mark.gpu
@pytest.mark.parametrize("attention", sorted(ATTENTION))
def test_the_pool_leaves_room_on_a_card(attention):
    model = random_model(attention).to("cuda", torch.bfloat16)
    engine = engine_of(model)
    assert engine.max_num_seqs == 256
    least = model.config.language_config.max_position_embeddings // 16
    assert 256 * least <= engine.blocks.num_blocks <= 1024 * least
    free, _ = torch.cuda.mem_get_info()
    assert free > GIB // 4
    answers = engine.generate([user("the date")] * 300, SamplingParams(max_tokens=4))
    assert [answer.error for answer in answers] == [None] * 300


@pytest.mark.gpu
def test_the_profile_measures_what_a_step_takes():
    model = random_model().to("cuda", torch.bfloat16)
    small = profile_steps(model, EngineConfig(), 128, pool_size._card_peak)
    large = profile_steps(model, EngineConfig(), 1024, pool_size._card_peak)
    assert 0 < small.answer < large.answer
    assert 0 < small.prompts <= large.prompts
