"""Choosing tokens: each rule against a plain definition, and rows that ignore their neighbours."""

import math
from dataclasses import replace

import pytest
import torch
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from vl2.engine.config import SamplingParams
from vl2.engine.sampler import (
    HEAD,
    draw,
    draw_ref,
    keep_likely,
    penalise_frequent,
    penalise_repeated,
    ranked,
    ranked_ref,
    sample,
)
from vl2.engine.sampling_state import UNIFORM_BITS, SamplingState

VOCAB = 50
STOPS = frozenset({1, 2})


def state_for(params=None, *, vocab=VOCAB, prompt=(), counted=None, offset=0) -> SamplingState:
    counted = torch.ones(vocab, dtype=torch.bool) if counted is None else counted
    ids = torch.tensor(prompt, dtype=torch.int64)
    return SamplingState.start(params or SamplingParams(), ids, counted, STOPS, None, offset)


def logits_for(rows: int, vocab: int = VOCAB, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * 3


def even(count: int) -> list[float]:
    """Evenly spaced uniform numbers: an exact picture of a distribution."""
    return [math.floor((i + 0.5) / count * 2**UNIFORM_BITS) / 2**UNIFORM_BITS for i in range(count)]


def draws(params: SamplingParams, logits: torch.Tensor, count: int = 4000) -> torch.Tensor:
    return draw(logits.expand(count, -1), [params] * count, even(count))


def kept_by(logits: torch.Tensor, **cuts: float) -> set[int]:
    """The plain definition: walk down the sorted list, one cut after the other."""
    ranking = sorted(enumerate(logits.tolist()), key=lambda pair: -pair[1])
    ranking = ranking[: int(cuts.get("top_k") or len(ranking))]
    total = sum(math.exp(score) for _, score in ranking)
    kept, mass = [], 0.0
    for token, score in ranking:
        if mass / total >= cuts.get("top_p", 1.0):
            break
        kept.append(token)
        mass += math.exp(score)
    floor = math.log(cuts["min_p"]) + ranking[0][1] if cuts.get("min_p") else -math.inf
    return {token for token in kept if logits[token] >= floor}


def test_temperature_zero_takes_the_likeliest_token():
    logits = logits_for(3)
    choices = sample(logits, [state_for()] * 3, [0, 1, 2])
    assert [choice.token for choice in choices] == logits.argmax(-1).tolist()
    expected = logits.double().log_softmax(-1).max(-1).values.tolist()
    assert [choice.logprob for choice in choices] == pytest.approx(expected)


def test_sampling_follows_the_softmax_at_its_temperature():
    logits = logits_for(1)
    counts = draws(SamplingParams(temperature=0.7), logits).bincount(minlength=VOCAB) / 4000
    assert (counts - (logits[0] / 0.7).softmax(-1)).abs().max() < 1e-3


CUTS = [{"top_k": 5}, {"top_p": 0.6}, {"min_p": 0.2}, {"top_k": 7, "top_p": 0.8, "min_p": 0.05}]


@pytest.mark.parametrize("cuts", CUTS)
def test_cuts_keep_what_their_definition_keeps(cuts):
    logits = logits_for(1, seed=3)
    tokens = draws(SamplingParams(temperature=1.0, **cuts), logits, count=20000)
    assert set(tokens.tolist()) == kept_by(logits[0], **cuts)


@pytest.mark.parametrize("cuts", CUTS)
def test_cuts_and_penalty_are_those_of_transformers(cuts):
    prompt = torch.tensor([[3, 9, 9, 20]])
    scores = RepetitionPenaltyLogitsProcessor(1.3)(prompt, logits_for(1, seed=3).clone())
    scores = TemperatureLogitsWarper(0.7)(prompt, scores)
    if "top_k" in cuts:
        scores = TopKLogitsWarper(cuts["top_k"])(prompt, scores)
    if "top_p" in cuts:
        scores = TopPLogitsWarper(cuts["top_p"])(prompt, scores)
    if "min_p" in cuts:
        scores = MinPLogitsWarper(cuts["min_p"])(prompt, scores)
    seen = torch.zeros(VOCAB, dtype=torch.bool).index_fill_(0, prompt[0], True)
    ours = penalise_repeated(logits_for(1, seed=3)[0], seen, 1.3)
    tokens = draws(SamplingParams(temperature=0.7, **cuts), ours[None], count=4000)
    counts = tokens.bincount(minlength=VOCAB) / 4000
    assert (counts - scores[0].softmax(-1)).abs().max() < 1e-3


@pytest.mark.parametrize("vocab", [VOCAB, 3 * HEAD])
def test_draws_equal_their_plain_definition(vocab):
    cuts = [{}, *CUTS, {"top_p": 0.999}, {"top_k": 2 * HEAD, "top_p": 0.9}, {"top_k": 10**9}]
    flat = logits_for(1, vocab) / 3  # top_p reaches far beyond the head
    flat[0, 5:9] = flat.max()  # equal scores: the lower id comes first
    for temperature in (0.3, 2.0):
        for cut in cuts:
            params = SamplingParams(temperature=temperature, **cut)
            numbers = even(7)
            fast = draw(flat.expand(7, -1), [params] * 7, numbers).tolist()
            assert fast == [draw_ref(flat[0], params, number) for number in numbers]


@pytest.mark.parametrize("width", [1, 7, VOCAB])
def test_ranking_equals_a_stable_sort(width):
    scores = logits_for(4).round()  # many equal scores
    scores[0, ::3] = -math.inf
    scores[1, 3], scores[1, 9] = 0.0, -0.0
    assert torch.equal(ranked(scores, width), ranked_ref(scores, width))


def test_the_likeliest_token_survives_the_hardest_cuts():
    hard = SamplingParams(temperature=2.0, top_k=1, top_p=1e-9, min_p=1.0)
    logits = logits_for(1)
    assert set(draws(hard, logits, count=50).tolist()) == {int(logits.argmax())}


@pytest.mark.parametrize("temperature", [1e-12, 1e-3, 100.0])
def test_extreme_temperatures_stay_finite(temperature):
    tokens = draws(SamplingParams(temperature=temperature), logits_for(1) * 1e4, count=20)
    assert ((tokens >= 0) & (tokens < VOCAB)).all()


def test_a_uniform_number_at_the_edge_picks_a_kept_token():
    logits = logits_for(1)
    almost_one = 1 - 2.0**-UNIFORM_BITS
    [token] = draw(logits, [SamplingParams(temperature=1.0, top_k=3)], [almost_one]).tolist()
    assert token in kept_by(logits[0], top_k=3)


MIXED = [
    SamplingParams(temperature=0.8, top_p=0.9, seed=1, logprobs=2),
    SamplingParams(logprobs=20),
    SamplingParams(temperature=1.5, top_k=4, repetition_penalty=1.3, seed=2, min_tokens=9),
    SamplingParams(temperature=1.0, seed=3),
    SamplingParams(temperature=2.0, top_p=0.9999, seed=4, frequency_penalty=0.3),
    SamplingParams(presence_penalty=2.0),
]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("vocab", [VOCAB, 777, 50_000])
def test_a_row_is_bitwise_the_same_whatever_it_is_batched_with(vocab, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        logits = logits_for(len(MIXED), vocab)
        states = [state_for(p, vocab=vocab, prompt=range(9)) for p in MIXED]
        together = sample(logits, states, range(len(MIXED)))
        turned = sample(logits.flip(0), states[::-1], range(len(MIXED))[::-1])[::-1]
        for row, state in enumerate(states):
            [alone] = sample(logits[row : row + 1], [state], [row])
            assert alone == together[row] == turned[row]
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_a_row_of_no_numbers_says_so_and_disturbs_no_other(wrong):
    logits = logits_for(len(MIXED))
    states = [state_for(p, prompt=range(9)) for p in MIXED]
    good = sample(logits, states, [0] * len(MIXED))
    for row in range(len(MIXED)):
        broken = logits.clone()
        broken[row, 7] = wrong
        choices = sample(broken, states, [0] * len(MIXED))
        assert math.isnan(choices[row].logprob)
        assert 0 <= choices[row].token < VOCAB
        assert choices[:row] + choices[row + 1 :] == good[:row] + good[row + 1 :]


def test_top_logprobs_are_the_likeliest_of_the_untouched_model():
    logits = logits_for(2)
    params = SamplingParams(temperature=1.0, logprobs=5, repetition_penalty=2.0, seed=1)
    for choice, row in zip(sample(logits, [state_for(params)] * 2, [0, 1]), logits, strict=True):
        values, tokens = row.double().log_softmax(-1).topk(5)
        assert [token for token, _ in choice.top] == tokens.tolist()
        assert [logprob for _, logprob in choice.top] == pytest.approx(values.tolist())
    assert sample(logits[:1], [state_for(replace(params, logprobs=0))], [0])[0].top == ()
    wide = SamplingParams(logprobs=20)
    assert len(sample(logits[:1, :8], [state_for(wide, vocab=8)], [0])[0].top) == 8


def test_logprob_is_that_of_the_untouched_model():
    params = SamplingParams(temperature=0.5, top_k=2, repetition_penalty=1.5, seed=0)
    logits = logits_for(1)
    [choice] = sample(logits, [state_for(params, prompt=range(VOCAB))], [0])
    exact = logits.double().log_softmax(-1)[0, choice.token]  # in float32 its own error shows
    assert choice.logprob == pytest.approx(float(exact))


def test_penalty_pushes_seen_tokens_down_whatever_their_sign():
    logits = torch.tensor([2.0, -2.0, 2.0, -2.0])
    seen = torch.tensor([True, True, False, False])
    assert penalise_repeated(logits, seen, 2.0).tolist() == [1.0, -4.0, 2.0, -2.0]


def test_frequency_and_presence_penalty_are_a_plain_loop():
    logits, counts = logits_for(1)[0], torch.arange(VOCAB) % 4
    plain = [
        score - 0.5 * count - (1.25 if count else 0.0)
        for score, count in zip(logits.tolist(), counts.tolist(), strict=True)
    ]
    assert penalise_frequent(logits, counts, 0.5, 1.25).tolist() == pytest.approx(plain)


def test_repetition_counts_prompt_and_answer_but_never_control_tokens():
    counted = torch.ones(VOCAB, dtype=torch.bool)
    counted[7] = False
    params = SamplingParams(repetition_penalty=2.0)
    state = state_for(params, prompt=[7, 9], counted=counted)
    logits = torch.zeros(1, VOCAB)
    logits[0, [7, 9, 11]] = torch.tensor([3.0, 4.0, 3.5])
    for expected in (11, 7, 7):  # 9 was in the prompt, then 11 in the answer; 7 never counts
        [choice] = sample(logits, [state], [0])
        assert choice.token == expected
        state.note(expected)


@pytest.mark.parametrize(
    ("penalty", "said"),
    [
        # 9 is in the prompt, which does not count; 7 never counts.
        ({"frequency_penalty": 1.0}, [9, 11, 9, 11, 9, 11, 7, 7]),
        ({"presence_penalty": 1.0}, [9, 11, 9, 9]),
    ],
)
def test_frequency_and_presence_count_the_answer_alone(penalty, said):
    counted = torch.ones(VOCAB, dtype=torch.bool)
    counted[7] = False
    state = state_for(SamplingParams(**penalty), prompt=[9, 9], counted=counted)
    logits = torch.zeros(1, VOCAB)
    logits[0, [7, 9, 11]] = torch.tensor([1.2, 4.0, 3.5])
    for index, expected in enumerate(said):
        [choice] = sample(logits, [state], [index])
        assert choice.token == expected
        state.note(expected)


def test_min_tokens_keeps_the_end_away():
    state = state_for(SamplingParams(min_tokens=2))
    logits = torch.zeros(4, VOCAB)
    logits[:, [1, 2, 30]] = torch.tensor([9.0, 8.0, 7.0])
    choices = sample(logits, [state] * 4, [0, 1, 2, 3])
    assert [choice.token for choice in choices] == [30, 30, 1, 1]


def test_random_numbers_are_a_function_of_seed_answer_and_index():
    params = SamplingParams(temperature=1.0, seed=5)
    first, again = state_for(params), state_for(params)
    numbers = [first.uniform(index) for index in range(500)]
    assert [again.uniform(index) for index in reversed(range(500))] == numbers[::-1]
    assert all(0 <= number < 1 for number in numbers)
    assert abs(sum(numbers) / 500 - 0.5) < 0.05
    others = [state_for(params, offset=1), state_for(replace(params, seed=6))]
    unseeded = [state_for(replace(params, seed=None)) for _ in range(2)]
    assert len({state.uniform(0) for state in (first, *others, *unseeded)}) == 5


def test_only_what_depends_on_the_answer_so_far_is_not_plain():
    early = state_for(SamplingParams(min_tokens=1))
    assert not early.plain
    early.note(5)
    assert early.plain
    assert state_for(SamplingParams(temperature=1.0, top_k=3)).plain
    for name in ("frequency_penalty", "presence_penalty", "repetition_penalty"):
        assert not state_for(SamplingParams(**{name: 0.5})).plain


def test_no_penalty_needs_no_memory():
    state = state_for(SamplingParams(temperature=1.0))
    assert state.seen is None
    assert state.counts is None


def test_keep_likely_counts_top_p_after_top_k():
    kept = keep_likely(
        torch.tensor([[4, 3, 2, 1]]),
        torch.tensor([[10]]),
        top_k=torch.tensor([[2]]),
        top_p=torch.tensor([[0.55]]),
        min_p=torch.tensor([[0.0]]),
    )
    assert kept.tolist() == [[True, False, False, False]]  # 4 of the 7 that top_k left
