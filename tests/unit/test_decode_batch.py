"""Decoding many sequences at once: the same numbers as sequence by sequence, wherever rows lie."""

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.unit.small_engines import ATTENTION, MIXED, engine_of, random_model, user
from torch.utils._python_dispatch import TorchDispatchMode

from vl2.engine import model_runner
from vl2.engine.config import SamplingParams
from vl2.engine.decode_batch import SPARE_SLOTS, DecodeBatch
from vl2.engine.engine import Engine
from vl2.engine.graphs import StepGraphs, call_again, pad_rows, power_of_two, why_not_captured
from vl2.model import moe
from vl2.model.vl2 import VL2Model
from vl2.ops.paged import (
    BlockTables,
    PagedStep,
    Span,
    empty_pools,
    paged_decode_attention,
    paged_decode_attention_ref,
    paged_latent_attention,
    paged_latent_attention_ref,
)

CPU = torch.device("cpu")
SIZE = 4
"""Slots of a block."""
BLOCKS = 20
UNUSED = BLOCKS * SIZE + 1
HELD = [([7, 2, 15], 9), ([3], 1), ([11, 0], 8), ([4, 5, 6, 19], 14)]
"""Blocks and length of sequences: scattered, alone, full, in a run."""
CLOSE = {"rtol": 1e-4, "atol": 2e-5}  # measured: 1e-6
WAITS = ("_local_scalar_dense", "item", "nonzero", "bincount", "unique", "masked_select", "equal")
"""Operations whose result, or its shape, the host has to wait for."""
LONG = SamplingParams(max_tokens=24, ignore_eos=True)


@pytest.fixture(scope="module", params=list(ATTENTION))
def model(request) -> VL2Model:
    return random_model(request.param).eval()


@pytest.fixture
def together(monkeypatch) -> None:
    """Engines that are made now decode as they do on a GPU."""
    monkeypatch.setattr(model_runner, "decodes_together", lambda device: True)


def tokens_of(answers) -> list[list[int]]:
    return [answer.token_ids for answer in answers]


def decoding_of(engine: Engine) -> DecodeBatch:
    decoding = engine._runner.decoding
    assert decoding is not None
    return decoding


def tables_of(held) -> BlockTables:
    blocks = torch.tensor([[*b, *[BLOCKS] * (4 - len(b))] for b, _ in held])
    lengths = torch.tensor([length for _, length in held])
    return BlockTables.over(blocks, lengths, size=SIZE, unused=UNUSED)


def runs_of(blocks: list[int], length: int) -> tuple[tuple[int, int], ...]:
    places = range(0, length, SIZE)
    ends = [min(SIZE, length - place) for place in places]
    return tuple((b * SIZE, b * SIZE + n) for b, n in zip(blocks, ends, strict=True))


def spans_of(held) -> tuple[Span, ...]:
    return tuple(Span.over(1, runs_of(*one), device=CPU, absorbed=True) for one in held)


def spoiled_pool(width: int) -> torch.Tensor:
    """Rows of which those that no sequence holds are no numbers, but for the unused one."""
    pool = torch.randn(UNUSED + 1, width)
    held = {slot for one in HELD for first, end in runs_of(*one) for slot in range(first, end)}
    pool[[slot for slot in range(UNUSED) if slot not in held]] = math.nan
    pool[UNUSED] = 0
    return pool


# --- attention


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (6, 1)])
def test_gathered_attention_equals_its_plain_twin(heads, kv_heads):
    query, pool = torch.randn(len(HELD), heads, 16), spoiled_pool(2 * kv_heads * 16)
    got = paged_decode_attention(query, pool, tables_of(HELD), scale=0.25)
    want = paged_decode_attention_ref(query, pool, spans_of(HELD), scale=0.25)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)  # worst measured 4.8e-7


def test_gathered_latent_attention_equals_its_plain_twin():
    query, pool = torch.randn(len(HELD), 4, 24), spoiled_pool(24)
    got = paged_latent_attention(query, pool, tables_of(HELD), scale=0.25, rank=16)
    want = paged_latent_attention_ref(query, pool, spans_of(HELD), scale=0.25, rank=16)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)  # worst measured 4.8e-7


def test_hidden_states_of_a_step_by_tables_equal_those_by_spans(model):
    config = model.config.language_config
    pools = empty_pools(config, UNUSED + 1, device=CPU, dtype=torch.float32)
    for pool in pools:
        pool.copy_(spoiled_pool(config.cache_width))
    slots = torch.tensor([runs_of(*one)[-1][1] - 1 for one in HELD])
    positions = torch.tensor([[length - 1 for _, length in HELD]])
    embeds = torch.randn(1, len(HELD), config.hidden_size)
    hidden = {}
    for way in ("tables", "spans"):
        step = PagedStep(pools=[pool.clone() for pool in pools], slots=slots)
        if way == "tables":
            step = replace(step, tables=tables_of(HELD))
        else:
            step = replace(step, spans=spans_of(HELD), absorbed=len(HELD) * config.use_mla)
        with torch.inference_mode():
            hidden[way] = model.language.step(embeds, positions, step)
    torch.testing.assert_close(hidden["tables"], hidden["spans"], **CLOSE)


# --- through the engine


def test_answers_are_those_of_sequence_by_sequence(model, together, monkeypatch):
    batched = engine_of(model, max_num_seqs=8)
    seen = [
        len(rows) for rows in recorded(decoding_of(batched), lambda: batched.generate(MIXED, LONG))
    ]
    monkeypatch.undo()
    plain = engine_of(model, max_num_seqs=8)
    assert tokens_of(batched.generate(MIXED, LONG)) == tokens_of(plain.generate(MIXED, LONG))
    assert max(seen) == len(MIXED)


def recorded(decoding: DecodeBatch, work) -> list[list[list[int]]]:
    """The rows of every batched step while something runs."""
    seen, run = [], decoding.graphs.run

    def keep(rows):
        seen.append(rows)
        return run(rows)

    decoding.graphs.run = keep
    work()
    decoding.graphs.run = run
    return seen


@pytest.mark.parametrize(
    "sizes",
    [
        {"max_num_batched_tokens": 5, "max_num_seqs": 3},  # prompts whose last piece is one token
        {"block_size": 1},
        {"speculative_tokens": 3, "prompt_lookup": 1},  # steps of one and of several tokens
    ],
)
def test_sizes_of_the_engine_change_no_answer(model, together, monkeypatch, sizes):
    batched = engine_of(model, **sizes).generate(MIXED, LONG)
    monkeypatch.undo()
    assert tokens_of(batched) == tokens_of(engine_of(model).generate(MIXED, LONG))


def test_a_sequence_that_gave_up_its_blocks_ends_with_the_same_tokens(model, together, monkeypatch):
    talks = [user(f"{word} the total price of it") for word in ("name", "count", "what is")]
    params = SamplingParams(max_tokens=40, ignore_eos=True)
    longest = max(len(engine_of(model).processor(talk).input_ids) for talk in talks) + 40
    blocks = longest // 4 + 3
    tight = engine_of(model, max_model_len=longest, block_size=4, num_blocks=blocks)
    answers = tight.generate(talks, params)
    monkeypatch.undo()
    assert tight.stats.preemptions > 0
    assert tokens_of(answers) == tokens_of(engine_of(model).generate(talks, params))


def test_rows_that_are_no_numbers_reach_nobody_else(model, together, monkeypatch):
    """A damaged sequence ends alone, and so does what it leaves behind in its blocks."""
    talks = [user("the date of it"), user("count the dogs")]
    engine = engine_of(model, num_blocks=512, enable_prefix_caching=False)
    for pool in engine._runner.pools:
        pool[:-1] = math.nan
    decoding, run = decoding_of(engine), decoding_of(engine).graphs.run

    def damage(rows):
        logits = run(rows).clone()
        if len(rows) == len(talks):
            for pool in decoding.pools:
                pool[rows[1][2] * engine.config.block_size] = math.nan
            logits[1] = math.nan
        return logits

    decoding.graphs.run = damage
    good, bad = engine.generate(talks, LONG)
    decoding.graphs.run = run
    assert (good.finish_reason, bad.finish_reason) == ("length", "error")
    again = engine.generate(talks, LONG)
    monkeypatch.undo()
    want = tokens_of(engine_of(model).generate(talks, LONG))
    assert good.token_ids == want[0]
    assert tokens_of(again) == want


def test_requests_that_run_alone_keep_their_logits(model, together, monkeypatch):
    """A recording writes where its last run left the logits of another request."""
    talks = [user("the date of it"), user("count the dogs")]
    engine = engine_of(model)
    decoding, run = decoding_of(engine), decoding_of(engine).graphs.run
    kept = torch.empty(1, model.config.language_config.vocab_size)

    def alone(rows):
        if len(rows) > 1:
            raise RuntimeError("too many")
        return kept.copy_(run(rows))

    decoding.graphs.run = alone
    found = tokens_of(engine.generate(talks, LONG))
    monkeypatch.undo()
    assert found == tokens_of(engine_of(model).generate(talks, LONG))


# --- a step never waits for the device


class Recorder(TorchDispatchMode):
    """Names of all operations that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name().removeprefix("aten::").partition(".")[0])
        return func(*args, **(kwargs or {}))


def test_a_decoding_step_asks_the_device_for_nothing(model, together, monkeypatch):
    monkeypatch.setattr(moe, "_traced", lambda: True)  # a CPU's own loop over experts asks
    decoding = decoding_of(engine_of(model))
    table = pad_rows([[5, 3, 0], [6, 20, 1, 2]], decoding.graphs.padding)
    with torch.no_grad(), Recorder() as recorder:  # inference mode would hide what parts do
        decoding.step(table)
    assert "_grouped_mm" in recorder.names
    assert sorted(set(recorder.names) & set(WAITS)) == []


def test_the_recorder_notices_a_wait():
    with Recorder() as recorder:
        torch.bincount(torch.tensor([1, 2]))
        torch.tensor([1.0]).item()
        torch.tensor([1, 0]).nonzero()
        torch.tensor([1, 0]).tolist()
    assert set(recorder.names) & set(WAITS) >= {"bincount", "_local_scalar_dense", "nonzero"}


COMPILED = """
import torch
from tests.unit.small_engines import random_model
from vl2.engine.decode_batch import DecodeBatch
from vl2.ops.paged import empty_pools

model = random_model().bfloat16().eval()  # the compiler knows no others' experts
config, cpu = model.config.language_config, torch.device("cpu")
pools = empty_pools(config, 82, device=cpu, dtype=torch.bfloat16)
for pool in pools:
    pool.normal_(generator=torch.Generator().manual_seed(1))
sizes = {"num_blocks": 20, "block_size": 4}
plain, compiled = (DecodeBatch(model, pools, **sizes, compiled=c).graphs for c in (False, True))
with torch.inference_mode():
    for rows in ([[5, 9, 7, 2, 15], [6, 1, 3], [7, 8, 11, 0]], [[8, 5, 1, 2]] * 7):
        print(float((plain.run(rows) - compiled.run(rows)).abs().max()))
"""


@pytest.mark.compiled
@pytest.mark.slow
def test_a_decoding_step_is_one_graph_for_the_compiler():
    """In a process of its own: the checks of shapes are not for the compiler."""
    done = subprocess.run(
        [sys.executable, "-c", COMPILED],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    errors = [float(line) for line in done.stdout.split()]
    assert len(errors) == 2
    assert max(errors) < 0.3  # logits up to 8 in bfloat16: ten steps of 2**-5


# --- what a graph needs around it


def test_rows_are_padded_to_powers_of_two():
    table = pad_rows([[9, 5, *range(17)], [8, 2, 1], [7, 1, 3]], (0, 1, 99))
    assert table.shape == (4, 2 + 32)
    assert table[0].tolist() == [9, 5, *range(17), *[99] * 15]
    assert table[1].tolist() == [8, 2, 1, *[99] * 31]
    assert table[3].tolist() == [0, 1, *[99] * 32]
    assert pad_rows([[9, 5, 1]], (0, 1, 99)).shape == (1, 2 + 16)
    assert [power_of_two(n) for n in (1, 2, 3, 4, 5, 64, 65)] == [1, 2, 4, 4, 8, 64, 128]


def test_a_recording_runs_again_with_new_numbers_in_the_same_memory():
    seen, captured = [], []

    def step(table):
        seen.append((table.data_ptr(), table.tolist()))
        return table[:, :2].float()

    def capture(program):
        captured.append(program)
        return call_again(program)

    graphs = StepGraphs(step, (0, 1, 99), device=CPU, capture=capture)
    results = [
        graphs.run([[n, n + 1, 5]] * count).tolist() for n, count in ((3, 3), (4, 4), (5, 1))
    ]
    assert results == [[[3, 4]] * 3, [[4, 5]] * 4, [[5, 6]]]
    assert len(captured) == 2  # four rows, and one
    assert seen[0][0] == seen[1][0] != seen[2][0]
    assert [row[:3] for row in seen[0][1]] == [[3, 4, 5]] * 3 + [[0, 1, 99]]


def test_dead_rows_change_no_pool_row_of_a_block(model, together):
    engine = engine_of(model, num_blocks=512)
    decoding = decoding_of(engine)
    for pool in decoding.pools:
        pool[:-1] = 3.0
    with torch.inference_mode():
        before = [pool.clone() for pool in decoding.pools]
        decoding.graphs.run([[5, 1, 0], [6, 1, 1], [7, 1, 2]])
    written = [0, 16, 32, 512 * 16]
    for pool, old in zip(decoding.pools, before, strict=True):
        changed = (pool != old).any(dim=1).nonzero()[:, 0].tolist()
        assert changed == written
        assert len(pool) == 512 * 16 + SPARE_SLOTS


def test_float32_experts_are_not_compiled():
    model = random_model()
    pools = empty_pools(model.config.language_config, 82, device=CPU, dtype=torch.float32)
    with pytest.raises(ValueError, match=r"the model is torch\.float32: .* load it as bfloat16"):
        DecodeBatch(model, pools, num_blocks=20, block_size=4, compiled=True)


def test_a_cpu_reads_in_place_and_records_nothing():
    model = random_model()
    assert why_not_captured(model) == "cpu has no CUDA graphs"
    assert engine_of(model)._runner.decoding is None
    assert model_runner.decodes_together(torch.device("cuda"))
