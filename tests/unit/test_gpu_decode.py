"""What only CUDA can show of decoding: no waits, recordings that replay, the CPU's answers."""

import threading
from dataclasses import replace

import pytest
import torch
from tests.unit.small_engines import ATTENTION, MIXED, engine_of, random_model

from vl2.engine.config import SamplingParams
from vl2.engine.decode_batch import SPARE_SLOTS, DecodeBatch
from vl2.engine.graphs import call_again, cuda_graph_capture, why_not_captured
from vl2.engine.quantize import quantize_model
from vl2.model.vl2 import VL2Model
from vl2.ops.paged import BlockTables, PagedStep, Span, empty_pools

pytestmark = pytest.mark.gpu

SIZE, BLOCKS = 16, 64
LONG = SamplingParams(max_tokens=40, ignore_eos=True)
ROWS = [[5, 20, 7, 2], [6, 1, 11], [7, 16, 0], [9, 37, 30, 31, 32]]
"""Token, length and blocks of four sequences."""


@pytest.fixture(scope="module")
def cuda() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device())


@pytest.fixture(scope="module", params=list(ATTENTION))
def attention(request) -> str:
    return request.param


@pytest.fixture(scope="module", params=[None, "float8"])
def model(attention, cuda, request) -> VL2Model:
    """In bfloat16 and float8, the forms in which a step can be recorded."""
    made = random_model(attention)
    if request.param:
        quantize_model(made, request.param)
    made = made.to(cuda, torch.bfloat16).eval()
    reason = why_not_captured(made)
    if reason:
        pytest.skip(reason)
    return made


def decoding_of(model: VL2Model) -> DecodeBatch:
    pools = empty_pools(
        model.config.language_config,
        BLOCKS * SIZE + SPARE_SLOTS,
        device=model.image_newline.device,
        dtype=model.image_newline.dtype,
    )
    for number, pool in enumerate(pools):
        pool.normal_(generator=torch.Generator(pool.device).manual_seed(number))
    return DecodeBatch(model, pools, num_blocks=BLOCKS, block_size=SIZE)


@torch.inference_mode()
def test_the_host_never_waits_in_a_step(model):
    decoding = decoding_of(model)
    decoding.graphs.capture = call_again
    decoding.graphs.run(ROWS)  # the first run may choose algorithms
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        logits = decoding.graphs.run(ROWS)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert logits.isfinite().all()


@torch.inference_mode()
def test_a_replay_gives_the_numbers_of_a_plain_run(model):
    plain, recorded = decoding_of(model), decoding_of(model)
    plain.graphs.capture = call_again
    later = [[token + 1, length + 1, *blocks] for token, length, *blocks in ROWS]
    later[2].append(1)  # its first block is full
    for rows in (ROWS, later, ROWS[:1], ROWS[:3], later):
        want = plain.graphs.run(rows).clone()
        got = recorded.graphs.run(rows)
        assert got.shape == want.shape
        torch.testing.assert_close(got, want, atol=0.05, rtol=0)
    shapes = [(4, 18), (1, 18)]
    assert list(recorded.graphs.programs) == shapes


@torch.inference_mode()
def test_other_threads_may_allocate_while_a_step_is_recorded(model, cuda):
    decoding, stop, made = decoding_of(model), threading.Event(), []

    def allocate() -> None:
        while not stop.is_set():
            made.append(torch.ones(len(made) % 1000 + 1, device=cuda).sum())
            del made[:-8]

    thread = threading.Thread(target=allocate)
    thread.start()
    try:
        for count in (1, 2, 4):
            assert decoding.graphs.run(ROWS[:count]).isfinite().all()
    finally:
        stop.set()
        thread.join()
    assert len(decoding.graphs.programs) == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_tables_equal_spans(attention, cuda, dtype):
    model = random_model(attention).to(cuda, dtype).eval()
    config = model.config.language_config
    pools = decoding_of(model).pools
    lengths, blocks = [37, 5, 16], [[9, 3, 40], [0, 64, 64], [8, 64, 64]]
    tables = BlockTables.over(
        torch.tensor(blocks, device=cuda),
        torch.tensor(lengths, device=cuda),
        size=SIZE,
        unused=BLOCKS * SIZE + 1,
    )
    for pool in pools:
        pool[BLOCKS * SIZE + 1] = 0
    runs = [((144, 160), (48, 64), (640, 645)), ((0, 5),), ((128, 144),)]
    step = PagedStep(pools=pools, slots=torch.tensor([644, 4, 143], device=cuda))
    spans = tuple(Span.over(1, run, device=cuda, absorbed=True) for run in runs)
    embeds = torch.randn(1, 3, config.hidden_size, device=cuda, dtype=dtype)
    positions = torch.tensor([[length - 1 for length in lengths]], device=cuda)
    got = model.language.step(embeds, positions, replace(step, tables=tables))
    absorbed = len(spans) * config.use_mla
    want = model.language.step(embeds, positions, replace(step, spans=spans, absorbed=absorbed))
    bound = 1e-3 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(got, want, atol=bound, rtol=bound)


def test_answers_in_float32_are_those_of_the_cpu(attention, cuda):
    model = random_model(attention)
    want = engine_of(model).generate(MIXED, LONG)
    got = engine_of(model.to(cuda)).generate(MIXED, LONG)
    assert [answer.error for answer in got] == [None] * len(MIXED)
    assert [answer.token_ids for answer in got] == [answer.token_ids for answer in want]


def test_an_engine_records_few_steps_and_repeats_its_answers(model):
    engine = engine_of(model)
    first = engine.generate(MIXED, LONG)
    decoding = engine._runner.decoding
    recorded = set(decoding.graphs.programs)
    again = engine.generate(MIXED, LONG)
    assert [answer.error for answer in first] == [None] * len(MIXED)
    assert [answer.token_ids for answer in again] == [answer.token_ids for answer in first]
    assert set(decoding.graphs.programs) == recorded
    assert len(recorded) <= 6


def test_every_float_is_recorded_and_int8_says_why_not(attention, cuda):
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        assert why_not_captured(random_model(attention).to(cuda, dtype)) is None
    model = random_model(attention)
    quantize_model(model, "int8")
    assert why_not_captured(model.to(cuda)) is not None


def test_capturing_shares_one_pool(cuda):
    capture, total = cuda_graph_capture(cuda), torch.zeros(4, device=cuda)
    programs = [capture(lambda n=n: total + n) for n in (1, 2)]
    total.fill_(3)
    assert [program().tolist() for program in programs] == [[4.0] * 4, [5.0] * 4]
