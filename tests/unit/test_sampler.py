"""Choosing tokens: each rule against a plain definition, and rows that ignore their neighbours."""

import math

import pytest
import torch

from vl2.engine.config import SamplingParams
from vl2.engine.sampler import Sampler, keep_likely, penalise

VOCAB = 50


def sampler_for(*params: SamplingParams, prompts=None, counted=None) -> Sampler:
    prompts = prompts or [torch.tensor([], dtype=torch.int64)] * len(params)
    counted = torch.ones(VOCAB, dtype=torch.bool) if counted is None else counted
    return Sampler.start(params, prompts, counted)


def logits_for(rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * 3


def draws(params: SamplingParams, logits: torch.Tensor, count: int = 4000) -> torch.Tensor:
    """Tokens for evenly spaced uniform numbers: an exact picture of the distribution."""
    uniform = (torch.arange(count) + 0.5) / count
    sampler = sampler_for(*[params] * count)
    return sampler.step(logits.expand(count, -1), uniform)[0]


def kept_by(logits: torch.Tensor, **cuts: float) -> set[int]:
    """The plain definition: walk down the sorted list, one cut after the other."""
    ranked = sorted(enumerate(logits.tolist()), key=lambda pair: -pair[1])
    ranked = ranked[: int(cuts.get("top_k") or len(ranked))]
    total = sum(math.exp(score) for _, score in ranked)
    kept, mass = [], 0.0
    for token, score in ranked:
        if mass / total >= cuts.get("top_p", 1.0):
            break
        kept.append(token)
        mass += math.exp(score)
    floor = math.log(cuts["min_p"]) + ranked[0][1] if cuts.get("min_p") else -math.inf
    return {token for token in kept if logits[token] >= floor}


def test_temperature_zero_takes_the_likeliest_token():
    logits = logits_for(3)
    tokens, logprobs = sampler_for(*[SamplingParams()] * 3).step(logits, torch.zeros(3))
    assert tokens.tolist() == logits.argmax(-1).tolist()
    assert torch.allclose(logprobs, logits.log_softmax(-1).max(-1).values)


def test_sampling_follows_the_softmax_at_its_temperature():
    logits = logits_for(1)
    counts = draws(SamplingParams(temperature=0.7), logits).bincount(minlength=VOCAB) / 4000
    assert (counts - (logits[0] / 0.7).softmax(-1)).abs().max() < 1e-3


@pytest.mark.parametrize(
    "cuts",
    [{"top_k": 5}, {"top_p": 0.6}, {"min_p": 0.2}, {"top_k": 7, "top_p": 0.8, "min_p": 0.05}],
)
def test_cuts_keep_what_their_definition_keeps(cuts):
    logits = logits_for(1, seed=3)
    tokens = draws(SamplingParams(temperature=1.0, **cuts), logits, count=20000)
    assert set(tokens.tolist()) == kept_by(logits[0], **cuts)


def test_the_likeliest_token_survives_the_hardest_cuts():
    hard = SamplingParams(temperature=2.0, top_k=1, top_p=1e-9, min_p=1.0)
    logits = logits_for(1)
    assert set(draws(hard, logits, count=50).tolist()) == {int(logits.argmax())}


@pytest.mark.parametrize("temperature", [1e-12, 1e-3, 100.0])
def test_extreme_temperatures_stay_finite(temperature):
    tokens = draws(SamplingParams(temperature=temperature), logits_for(1) * 1e4, count=20)
    assert ((tokens >= 0) & (tokens < VOCAB)).all()


def test_a_uniform_number_at_the_edge_picks_a_kept_token():
    almost_one = torch.nextafter(torch.ones(1), torch.zeros(1))
    params = SamplingParams(temperature=1.0, top_k=3)
    logits = logits_for(1)
    token, _ = sampler_for(params).step(logits, almost_one)
    assert int(token) in kept_by(logits[0], top_k=3)


def test_a_row_does_not_depend_on_its_neighbours():
    mixed = [
        SamplingParams(temperature=0.8, top_p=0.9),
        SamplingParams(),
        SamplingParams(temperature=1.5, top_k=4, repetition_penalty=1.3),
        SamplingParams(temperature=1.0),
    ]
    logits, uniform = logits_for(4), torch.tensor([0.3, 0.0, 0.9, 0.55])
    prompts = [torch.arange(row, row + 9) for row in range(4)]
    together, _ = sampler_for(*mixed, prompts=prompts).step(logits, uniform)
    for row, params in enumerate(mixed):
        alone = sampler_for(params, prompts=prompts[row : row + 1])
        token, _ = alone.step(logits[row : row + 1], uniform[row : row + 1])
        assert int(token) == int(together[row])


def test_penalty_pushes_seen_tokens_down_whatever_their_sign():
    logits = torch.tensor([[2.0, -2.0, 2.0, -2.0]])
    seen = torch.tensor([[True, True, False, False]])
    out = penalise(logits, seen, torch.tensor([2.0]))
    assert out.tolist() == [[1.0, -4.0, 2.0, -2.0]]


def test_penalty_counts_prompt_and_answer_but_never_control_tokens():
    counted = torch.ones(VOCAB, dtype=torch.bool)
    counted[7] = False
    params = SamplingParams(repetition_penalty=2.0)
    sampler = sampler_for(params, prompts=[torch.tensor([7, 9])], counted=counted)
    logits = torch.zeros(1, VOCAB)
    logits[0, [7, 9, 11]] = torch.tensor([3.0, 4.0, 3.5])
    zero = torch.zeros(1)
    assert int(sampler.step(logits, zero)[0]) == 11  # 9 was in the prompt: 4.0 / 2
    assert int(sampler.step(logits, zero)[0]) == 7  # 11 is in the answer now
    assert int(sampler.step(logits, zero)[0]) == 7  # 7 is never counted


def test_logprob_is_that_of_the_untouched_model():
    params = SamplingParams(temperature=0.5, top_k=2, repetition_penalty=1.5)
    logits = logits_for(1)
    sampler = sampler_for(params, prompts=[torch.arange(VOCAB)])
    token, logprob = sampler.step(logits, torch.tensor([0.2]))
    assert torch.allclose(logprob, logits.log_softmax(-1)[0, token])


def test_select_keeps_the_rows_state():
    params = [SamplingParams(repetition_penalty=1.0 + row) for row in range(3)]
    sampler = sampler_for(*params, prompts=[torch.tensor([row]) for row in range(3)])
    part = sampler.select(torch.tensor([2, 0]))
    assert part.repetition_penalty.tolist() == [3.0, 1.0]
    assert part.seen.nonzero().tolist() == [[0, 2], [1, 0]]


def test_keep_likely_counts_top_p_after_top_k():
    ranked = torch.tensor([[0.4, 0.3, 0.2, 0.1]])
    kept = keep_likely(
        ranked, top_k=torch.tensor([2]), top_p=torch.tensor([0.55]), min_p=torch.tensor([0.0])
    )
    assert kept.tolist() == [[True, False, False, False]]  # 0.4 of the 0.7 that top_k left


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", 0),
        ("max_tokens", 1.5),
        ("max_tokens", True),
        ("max_tokens", "5"),
        ("max_tokens", None),
        ("max_tokens", 2**63),
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", "hot"),
        ("temperature", 10**400),
        ("top_p", 0),
        ("top_p", 1.01),
        ("top_p", math.nan),
        ("top_k", -1),
        ("top_k", 2.0),
        ("min_p", -0.5),
        ("min_p", 2),
        ("repetition_penalty", 0),
        ("repetition_penalty", math.nan),
        ("repetition_penalty", math.inf),
        ("stop", [""]),
        ("stop", [5]),
        ("stop", 5),
        ("stop_token_ids", ["a"]),
        ("stop_token_ids", "1"),
        ("stop_token_ids", [True]),
        ("seed", -1),
        ("seed", 2**64),
        ("seed", 0.5),
    ],
)
def test_bad_parameters_are_refused_in_one_line(name, value):
    with pytest.raises(ValueError, match=f"^{name} is ") as caught:
        SamplingParams(**{name: value})
    assert "\n" not in str(caught.value)
    assert "expected" in str(caught.value)


def test_good_parameters_are_taken():
    params = SamplingParams(stop="###", stop_token_ids=[5], top_p=1, temperature=1, seed=0)
    assert params.stop == ("###",)
    assert params.stop_token_ids == (5,)
