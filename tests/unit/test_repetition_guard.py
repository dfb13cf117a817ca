"""The repetition guard: a table equal to its definition, loops that end, tables that may go on."""

import random
from collections.abc import Iterator
from dataclasses import replace
from itertools import cycle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.small_engines import MIXED, TOKENIZER, engine_of, random_model, user

from vl2.engine.config import RepetitionGuard, SamplingParams, StructuredOutputsParams
from vl2.engine.guard import NgramTable, banned_ref
from vl2.engine.sampler import sample
from vl2.engine.sampling_state import SamplingState
from vl2.model.vl2 import VL2Model

USUAL = RepetitionGuard()
SHORT = RepetitionGuard(ngram_size=2, window_size=16)
CELLS = ("0", "0.00", "-", "yes", "", "n/a")
PAGES = 200
MARKED = ("<|ref|>apple<|/ref|><|det|>[[", ", ", "]]<|/det|>")


@pytest.fixture(scope="module")
def model() -> VL2Model:
    return random_model()


def state_for(guard: RepetitionGuard | None, said=(), **params) -> SamplingState:
    counted = torch.ones(TOKENIZER.vocab_size, dtype=torch.bool)
    params = SamplingParams(repetition_guard=guard, **params)
    stops = frozenset({TOKENIZER.eos_id})
    state = SamplingState.start(params, torch.tensor([], dtype=torch.int64), counted, stops, None)
    for token in said:
        state.note(token)
    return state


def hits(ids: list[int], guard: RepetitionGuard) -> int:
    """How many tokens of a text the guard would have forbidden."""
    table, count = NgramTable(guard), 0
    for token in ids:
        count += token in table.banned
        table.add(token)
    return count


@given(
    st.lists(st.integers(0, 2), max_size=60),
    st.integers(2, 5),
    st.integers(0, 12),
    st.sets(st.integers(0, 2), max_size=1),
)
def test_the_table_equals_a_search_through_the_whole_answer(ids, size, more, exempt):
    guard = RepetitionGuard(
        ngram_size=size, window_size=size + more, exempt_token_ids=sorted(exempt)
    )
    table = NgramTable(guard)
    for length, token in enumerate(ids, start=1):
        table.add(token)
        assert set(table.banned) == banned_ref(ids[:length], guard)


def test_the_table_keeps_no_more_than_the_window():
    table = NgramTable(SHORT)
    for token in range(500):
        table.add(token)
    assert len(table._ngrams) == len(table._following) == 15


def table_text(draw: random.Random, *, markdown: bool, most_columns: int = 8) -> str:
    """Rows of one cell again and again behind their labels; short ones without labels, too."""
    columns, cell, label = draw.randint(2, most_columns), draw.choice(CELLS), draw.random() < 0.8
    rows = []
    for number in range(draw.randint(3, 16)):
        cells = [f"Item {number + 1}" if label else cell, *[cell] * (columns - 1)]
        if markdown:
            rows.append(f"| {' | '.join(cells)} |\n")
        else:
            rows.append(f"<tr>{''.join(f'<td>{c}</td>' for c in cells)}</tr>\n")
        # Equal rows pass as long as they repeat fewer tokens than an n-gram has.
        if not label and len(TOKENIZER.encode(rows[0])) * len(rows) >= USUAL.ngram_size:
            break
    return "".join(rows)


def boxes_text(draw: random.Random, between: str) -> str:
    boxes = [[draw.randint(0, 999) for _ in range(4)] for _ in range(draw.randint(5, 40))]
    listed = [", ".join(map(str, box)) for box in boxes]
    return MARKED[0] + between.join(listed) + MARKED[2]


def pages() -> Iterator[str]:
    """Half tables of Markdown and HTML, half lists of boxes with one label."""
    draw = random.Random(17)
    for _ in range(PAGES // 2):
        yield table_text(draw, markdown=True)
        yield table_text(draw, markdown=False)
    for _ in range(PAGES // 4):
        yield boxes_text(draw, "], [")
        yield boxes_text(draw, MARKED[2] + MARKED[0])


def test_tables_and_lists_of_boxes_repeat_themselves_unhindered():
    texts = [TOKENIZER.encode_trusted(text) for text in pages()]
    assert len(texts) >= PAGES
    assert [number for number, ids in enumerate(texts) if hits(ids, USUAL)] == []
    # The n-grams of DeepSeek-OCR are too short for them.
    short = RepetitionGuard(ngram_size=30, window_size=90)
    assert sum(hits(ids, short) > 0 for ids in texts[::8]) > 5


def answer(loop: str, guard: RepetitionGuard | None, most: int) -> tuple[list[int], int]:
    """What a model says that likes to say a loop for ever and to end the answer second best."""
    state, said, fired = state_for(guard), [], 0
    for index, token in zip(range(most), cycle(TOKENIZER.encode_trusted(loop)), strict=False):
        logits = torch.zeros(1, TOKENIZER.vocab_size)
        logits[0, [token, TOKENIZER.eos_id]] = torch.tensor([9.0, 5.0])
        [choice] = sample(logits, [state], [index])
        state.note(choice.token)
        said.append(choice.token)
        fired += choice.guarded
        if choice.token == TOKENIZER.eos_id:
            break
    return said, fired


LOOPS = {
    "one token": ".",
    "a sentence": "The total price of it is shown in the picture above. ",
    "a row of a Markdown table": "| 0.00 | yes | 0.00 |\n",
    "a row of an HTML table": "<tr><td>0.00</td><td>0</td><td>-</td></tr>\n",
    "an empty row": "|  |  |  |  |\n",
    "a box": f"{MARKED[0]}1, 2, 3, 4{MARKED[2]}",
    "a control token": "<|ref|>",
}


@pytest.mark.parametrize("loop", LOOPS.values(), ids=LOOPS.keys())
def test_an_endless_loop_ends(loop):
    round_ = len(TOKENIZER.encode_trusted(loop))
    first = USUAL.ngram_size + round_ - 1  # so many tokens are free
    said, fired = answer(loop, USUAL, most=2000)
    assert (len(said), said[-1], fired) == (first + 1, TOKENIZER.eos_id, 1)
    unguarded, fired = answer(loop, None, most=first + 50)
    assert (len(unguarded), fired) == (first + 50, 0)


def test_only_the_tokens_that_complete_an_ngram_are_masked():
    logits = torch.randn(3, TOKENIZER.vocab_size, generator=torch.Generator().manual_seed(0))
    logits[:, 7], logits[:, 9], logits[:, 11] = 30.0, 29.0, 28.0
    said = [5, 7, 5, 9, 5]
    states = [state_for(None, said), state_for(SHORT, said), state_for(SHORT, said[:-1])]
    assert states[1].banned == (7, 9)
    plain, guarded, other = sample(logits, states, [5, 5, 4])
    assert [plain.token, guarded.token, other.token] == [7, 11, 7]
    assert [plain.guarded, guarded.guarded, other.guarded] == [False, True, False]
    [alone] = sample(logits[1:2], states[1:2], [5])
    assert alone == guarded
    # The model's own log-probability, in which nothing is masked.
    assert guarded.logprob == pytest.approx(float(logits[1].log_softmax(-1)[11]))


def test_a_ban_of_what_nobody_wanted_is_not_told():
    logits = torch.zeros(1, TOKENIZER.vocab_size)
    logits[0, 11] = 5.0
    [choice] = sample(logits, [state_for(SHORT, [5, 7, 5])], [3])
    assert (choice.token, choice.guarded) == (11, False)


def test_sampled_answers_are_guarded_too():
    logits = torch.full((1, TOKENIZER.vocab_size), -50.0)
    logits[0, [7, 11]] = torch.tensor([9.0, 1.0])
    [choice] = sample(logits, [state_for(SHORT, [5, 7, 5], temperature=1.0, seed=0)], [3])
    assert (choice.token, choice.guarded) == (11, True)


def test_exempt_tokens_may_always_come():
    guard = replace(SHORT, exempt_token_ids=[7])
    assert state_for(guard, [5, 7, 5, 9, 5]).banned == (9,)


def test_a_guard_stands_back_where_a_form_leaves_nothing_else(model):
    form = StructuredOutputsParams(regex="(ab){20}")
    params = SamplingParams(max_tokens=80, structured_outputs=form, repetition_guard=SHORT)
    [answer] = engine_of(model).generate(MIXED[:1], params)
    assert (answer.text, answer.finish_reason, answer.error) == ("ab" * 20, "stop", None)


@pytest.fixture
def babbler(model, monkeypatch) -> VL2Model:
    """A model that knows 8 words, and so comes back to each pair of them."""
    scores = model.language.logits

    def few(hidden: torch.Tensor) -> torch.Tensor:
        logits = scores(hidden)
        known = torch.arange(logits.shape[-1]) // 8 == 5
        return torch.where(known, logits, logits - 1e4)

    monkeypatch.setattr(model.language, "logits", few)
    return model


TALKS = [MIXED[0], user("one two one two one two one")]
HOW = [{}, {"temperature": 0.3, "seed": 3, "n": 2}]


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize(
    "sizes",
    [
        {"max_num_seqs": 1, "max_num_batched_tokens": 7, "enable_prefix_caching": False},
        {"speculative_tokens": 5, "prompt_lookup": 1},
    ],
)
def test_a_guarded_answer_is_the_same_however_it_is_computed(babbler, how, sizes):
    params = SamplingParams(max_tokens=24, ignore_eos=True, repetition_guard=SHORT, **how)
    answers = engine_of(babbler).generate(TALKS, params)
    engine = engine_of(babbler, **sizes)
    again = engine.generate(TALKS, params)
    assert [(a.token_ids, a.guard_fired) for a in again] == [
        (a.token_ids, a.guard_fired) for a in answers
    ]
    assert sum(a.guard_fired for a in answers) > 3
    assert not sizes.get("speculative_tokens") or engine.stats.drafted_tokens > 0
    for ids in (a.token_ids for a in answers):
        assert not any(ids[at] in banned_ref(ids[:at], SHORT) for at in range(len(ids)))


def test_the_usual_guard_changes_no_answer_that_does_not_loop(model):
    params = SamplingParams(max_tokens=20)
    plain = engine_of(model).generate(TALKS, params)
    guarded = engine_of(model).generate(TALKS, replace(params, repetition_guard=USUAL))
    assert guarded == plain
    assert [a.guard_fired for a in guarded] == [0, 0]


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"ngram_size": 1}, "ngram_size is 1: expected a whole number from 2 up"),
        (
            {"ngram_size": 9, "window_size": 8},
            "window_size is 8: expected a whole number from 9, the ngram_size, up",
        ),
        ({"exempt_token_ids": "7"}, "exempt_token_ids is '7': expected a list of token ids"),
    ],
)
def test_a_guard_that_makes_no_sense_is_refused(wrong, told):
    with pytest.raises(ValueError, match=f"^{told}$"):
        RepetitionGuard(**wrong)
