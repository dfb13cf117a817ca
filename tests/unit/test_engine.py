"""The generation loop on small random models: batch = single, chunks = one shot, every ending."""

import copy
import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from tests.unit.small_engines import (
    ATTENTION,
    MIXED,
    TOKENIZER,
    engine_of,
    picture,
    random_model,
    user,
)

from vl2.config import VL2Config
from vl2.engine.config import EngineConfig, SamplingParams, StructuredOutputsParams
from vl2.engine.engine import Engine
from vl2.model.vl2 import VL2Model
from vl2.processing.processor import Processor
from vl2.processing.settings import ProcessorConfig

SAMPLED = {"temperature": 1.0, "top_p": 0.95, "max_tokens": 12}


@pytest.fixture(scope="module")
def models() -> dict[str, VL2Model]:
    return {attention: random_model(attention) for attention in ATTENTION}


@pytest.fixture
def engine(models) -> Engine:
    return engine_of(models["mla"])


class Script:
    """Stands in for the output head: step n gives token n the logit `strength`, all others 0."""

    def __init__(self, tokens: list[int], strength: float = 20.0) -> None:
        self.tokens = iter(tokens)
        self.strength = strength

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(*hidden.shape[:2], TOKENIZER.vocab_size)
        logits[..., next(self.tokens)] = self.strength
        return logits


@pytest.fixture
def say(engine, monkeypatch):
    """Let the model say a text and then EOS."""

    def script(text: str, strength: float = 20.0) -> None:
        tokens = [*TOKENIZER.encode_trusted(text), TOKENIZER.eos_id]
        monkeypatch.setattr(engine.model.language, "logits", Script(tokens, strength))

    return script


@pytest.mark.parametrize("attention", ATTENTION)
def test_batch_equals_single(models, attention):
    together = engine_of(models[attention], enable_prefix_caching=False)
    params = SamplingParams(max_tokens=6)
    batched = together.generate(MIXED, params)
    single = [together.generate([talk], params)[0] for talk in MIXED]
    assert [a.token_ids for a in batched] == [a.token_ids for a in single]
    for left, right in zip(batched, single, strict=True):
        assert left.usage == right.usage
        assert torch.allclose(torch.tensor(left.logprobs), torch.tensor(right.logprobs), atol=1e-4)


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_chunked_prefill_equals_one_shot(models, attention, chunk):
    params = SamplingParams(max_tokens=6)
    talks = MIXED[:2] if chunk > 1 else MIXED[:1]
    whole = engine_of(models[attention], max_num_batched_tokens=4096).generate(talks, params)
    chunked = engine_of(models[attention], max_num_batched_tokens=chunk).generate(talks, params)
    assert [a.token_ids for a in chunked] == [a.token_ids for a in whole]


def test_cached_steps_equal_the_model_run_on_the_whole_text(engine):
    [answer] = engine.generate([MIXED[1]], SamplingParams(max_tokens=8))
    batch = engine.processor.collate([engine.processor(MIXED[1])])
    new = torch.tensor([answer.token_ids])
    ids = torch.cat((batch.input_ids, new), dim=1)
    seen = torch.nn.functional.pad(batch.images_seq_mask, (0, new.shape[1]))
    with torch.inference_mode():
        logits = engine.model(ids, batch.images, seen, batch.images_spatial_crop).logits
    rows = logits[0, -new.shape[1] - 1 : -1].log_softmax(-1)
    assert rows.argmax(-1).tolist() == answer.token_ids
    assert torch.allclose(rows.max(-1).values, torch.tensor(answer.logprobs), atol=1e-4)


def test_a_list_longer_than_the_batch_waits_its_turn(models, engine):
    params = [SamplingParams(max_tokens=n) for n in (3, 9, 5, 7)]
    queued = engine_of(models["mla"], max_num_seqs=3).generate(MIXED, params)
    assert [a.token_ids for a in queued] == [a.token_ids for a in engine.generate(MIXED, params)]
    assert [len(a.token_ids) for a in queued] == [3, 9, 5, 7]


def test_nothing_to_answer_is_no_error(engine):
    assert engine.generate([]) == []


def test_a_seed_makes_samples_repeatable_in_any_batch(engine):
    params = [SamplingParams(**SAMPLED, seed=seed) for seed in (1, 2, 3, 4)]
    together = engine.generate(MIXED, params)
    backwards = engine.generate(MIXED[::-1], params[::-1])[::-1]
    alone = [engine.generate([t], p)[0] for t, p in zip(MIXED, params, strict=True)]
    assert [a.token_ids for a in together] == [a.token_ids for a in alone]
    assert [a.token_ids for a in together] == [a.token_ids for a in backwards]


def test_seeds_differ_and_no_seed_is_a_new_one_each_time(engine):
    def sample(**seed: int) -> tuple[int, ...]:
        params = SamplingParams(temperature=3.0, max_tokens=12, **seed)
        return tuple(engine.generate([MIXED[0]], params)[0].token_ids)

    assert len({sample(seed=n) for n in range(3)}) == 3
    assert sample() != sample()


def test_greedy_neighbours_do_not_change_a_sampled_answer(engine):
    params = [SamplingParams(**SAMPLED, seed=7), SamplingParams(max_tokens=12)]
    mixed = engine.generate(MIXED[:2], params)
    assert mixed[0].token_ids == engine.generate(MIXED[:1], params[0])[0].token_ids
    assert mixed[1].token_ids == engine.generate(MIXED[1:2], params[1])[0].token_ids


def test_deltas_join_to_the_texts(engine):
    texts = [""] * len(MIXED)

    def hear(index: int, delta: str) -> None:
        assert delta
        texts[index] += delta

    answers = engine.generate(MIXED, SamplingParams(**SAMPLED, seed=0), on_token=hear)
    assert texts == [answer.text for answer in answers]
    assert any(texts)


def test_multi_byte_characters_arrive_whole(engine, say):
    say("价é 𝄞!")
    deltas = []
    [answer] = engine.generate([MIXED[0]], on_token=lambda index, delta: deltas.append(delta))
    assert answer.text == "".join(deltas) == "价é 𝄞!"
    assert len(deltas) < len(answer.token_ids)


def test_eos_ends_the_answer_and_is_no_part_of_its_text(engine, say):
    say("the year")
    [answer] = engine.generate([MIXED[0]])
    assert answer.text == "the year"
    assert answer.finish_reason == "stop"
    assert answer.token_ids[-1] == TOKENIZER.eos_id
    assert answer.usage.completion_tokens == len(answer.token_ids)


def test_a_stop_string_never_leaks(engine, say):
    say("one two STOP three")
    deltas = []
    [answer] = engine.generate(
        [MIXED[0]],
        SamplingParams(stop=["two STO", "STOP"]),
        on_token=lambda index, delta: deltas.append(delta),
    )
    assert answer.text == "".join(deltas) == "one "
    assert answer.finish_reason == "stop"


def test_min_tokens_hold_back_stop_strings(engine, say):
    tokens = TOKENIZER.encode_trusted("a, b, c, d, e")
    say("a, b, c, d, e")
    params = SamplingParams(min_tokens=tokens.index(tokens[1], 4), stop=",")
    deltas = []
    [answer] = engine.generate([MIXED[0]], params, on_token=lambda _, delta: deltas.append(delta))
    assert (answer.text, answer.finish_reason) == ("a, b, c", "stop")
    assert "".join(deltas) == answer.text
    assert len(answer.token_ids) == params.min_tokens + 1


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("form", [None, StructuredOutputsParams(choice=["yes", "no"])])
@pytest.mark.parametrize("least", [1, 3])
def test_min_tokens_without_a_token_that_goes_on_are_refused(engine, temperature, form, least):
    sampled = SamplingParams(temperature=temperature, structured_outputs=form)
    params = replace(sampled, min_tokens=least, stop_token_ids=[*range(TOKENIZER.vocab_size)])
    plain = SamplingParams(max_tokens=4)
    [stuck, other] = engine.generate([MIXED[0], MIXED[1]], [params, plain])
    assert (stuck.finish_reason, stuck.error_code) == ("error", "invalid_request")
    assert stuck.error == (
        f"min_tokens is {least}, but after 0 tokens every token that may come ends the answer: "
        "give fewer min_tokens or fewer stop_token_ids"
    )
    assert [other.token_ids] == [a.token_ids for a in engine.generate([MIXED[1]], plain)]
    [ended] = engine.generate([MIXED[0]], replace(params, min_tokens=0))
    assert (ended.finish_reason, len(ended.token_ids)) == ("stop", 1)


def test_min_tokens_end_in_a_form_of_which_only_the_first_token_may_come(engine):
    first, *rest = TOKENIZER.encode("yes, indeed")
    assert rest
    params = SamplingParams(
        min_tokens=9,
        stop_token_ids=[token for token in range(TOKENIZER.vocab_size) if token != first],
        structured_outputs=StructuredOutputsParams(choice=["yes, indeed"]),
    )
    [answer] = engine.generate([MIXED[0]], params)
    assert answer.token_ids == [first]
    assert answer.error.startswith("min_tokens is 9, but after 1 tokens every token")


def test_a_stop_token_ends_the_answer(engine, say):
    say("one<|User|>two")
    params = SamplingParams(stop_token_ids=[TOKENIZER.user_id])
    [answer] = engine.generate([MIXED[0]], params)
    assert (answer.text, answer.finish_reason) == ("one", "stop")


def test_max_tokens_ends_the_answer(engine, say):
    say("one two three four")
    [answer] = engine.generate([MIXED[0]], SamplingParams(max_tokens=3))
    assert answer.finish_reason == "length"
    assert answer.usage.completion_tokens == len(answer.token_ids) == 3


def test_a_cut_character_and_a_held_stop_prefix_come_out_at_the_end(engine, say):
    say("S价")
    params = SamplingParams(max_tokens=2, stop=["S\ufffd\ufffd"])
    [answer] = engine.generate([MIXED[0]], params)
    assert answer.text.startswith("S")
    assert answer.finish_reason == "length"


def test_repetition_penalty_counts_prompt_and_answer_but_no_placeholder(engine, monkeypatch):
    said, image, other = TOKENIZER.encode("name")[0], TOKENIZER.image_id, TOKENIZER.encode("cat")[0]
    logits = torch.zeros(1, 1, TOKENIZER.vocab_size)
    logits[..., [said, other, image]] = torch.tensor([10.0, 9.0, 8.0])
    monkeypatch.setattr(engine.model.language, "logits", lambda hidden: logits)
    talk = user("name", picture(50, 50))
    [plain] = engine.generate([talk], SamplingParams(max_tokens=3))
    [varied] = engine.generate([talk], SamplingParams(max_tokens=3, repetition_penalty=2.0))
    assert plain.token_ids == [said] * 3
    assert varied.token_ids == [other, image, image]


def test_boxes_are_in_source_pixels_with_the_probability_of_their_digits(engine, say):
    text = "<|ref|>the dog<|/ref|><|det|>[[0, 0, 999, 999], [100, 200, 300, 400]]<|/det|>"
    strength = 6.0
    say(text, strength)
    [answer] = engine.generate([user("find", picture(200, 90))])
    assert answer.text == text
    assert [(b.label, b.x1, b.y1, b.x2, b.y2) for b in answer.boxes] == [
        ("the dog", 0, 0, 200, 90),
        ("the dog", 20, 18, 60, 36),
    ]
    expected = math.exp(strength) / (math.exp(strength) + TOKENIZER.vocab_size - 1)
    for box in answer.boxes:
        assert box.score == pytest.approx(expected, abs=1e-5)


def test_a_bad_box_between_good_ones_does_not_shift_their_scores(engine, monkeypatch):
    text = "<|det|>[[5, 5, 1, 1], [1, 2, 3, 4], [1, 2], [5, 6, 7, 8]]<|/det|>"
    tokens = TOKENIZER.encode_trusted(text)
    strengths: Iterator[float] = iter(torch.linspace(5, 8, len(tokens) + 1).tolist())
    script = Script([*tokens, TOKENIZER.eos_id])

    def head(hidden: torch.Tensor) -> torch.Tensor:
        script.strength = next(strengths)
        return script(hidden)

    monkeypatch.setattr(engine.model.language, "logits", head)
    [answer] = engine.generate([user("find", picture(999, 999))])
    pieces = [TOKENIZER.decode([token]) for token in tokens]
    probability = [math.exp(logprob) for logprob in answer.logprobs]
    digits = [p for p, piece in zip(probability, pieces, strict=False) if piece.strip().isdigit()]
    assert len(answer.boxes) == 2
    first, second = answer.boxes
    assert (first.x1, second.x1) == (1, 5)
    assert first.score == pytest.approx(sum(digits[4:8]) / 4)
    assert second.score == pytest.approx(sum(digits[10:14]) / 4)


def test_boxes_belong_to_the_picture_that_the_question_names(engine, say):
    say("<|det|>[[0, 0, 999, 999]]<|/det|>")
    [answer] = engine.generate([user("dog in the second image", picture(50, 50), picture(70, 30))])
    assert [(b.x2, b.y2, b.image_index) for b in answer.boxes] == [(70, 30, 1)]


SMALL, WIDE, HIGH = picture(50, 50), picture(70, 30), picture(20, 40)
SAID = {"role": "assistant", "content": "nothing"}


@pytest.mark.parametrize(
    ("talk", "found"),
    [
        ([*user("What is this?", SMALL), SAID, *user("the dog", WIDE)], (70, 30, 1, None)),
        ([*user("a", SMALL), SAID, *user("b", WIDE), SAID, *user("the dog")], (70, 30, 1, None)),
        ([*user("a", SMALL), SAID, *user("the first image", WIDE)], (50, 50, 0, None)),
        ([*user("a", SMALL), SAID, *user("图一里的狗", WIDE, HIGH)], (70, 30, 1, '"图一" can')),
        ([*user("image 1 or 2?", SMALL), SAID, *user("the dog", HIGH)], (20, 40, 1, None)),
        (user("the dog", SMALL, WIDE), (50, 50, 0, "no picture is named: picture 1 of 2 is")),
    ],
)
def test_boxes_belong_to_the_turn_that_asks(engine, say, talk, found):
    say("<|det|>[[0, 0, 999, 999]]<|/det|>")
    [answer] = engine.generate([talk])
    [box] = answer.boxes
    assert (box.x2, box.y2, box.image_index) == found[:3]
    assert (box.note or "").startswith(found[3] or "")
    assert (box.note is None) == (found[3] is None)


def test_boxes_of_the_official_format_belong_to_the_turn_that_asks(engine, say):
    say("<|det|>[[0, 0, 999, 999]]<|/det|>")
    turns = [("<|User|>", "<image>\nWhat is this?"), ("<|Assistant|>", "nothing")]
    turns += [("<|User|>", "<image>\n<|ref|>the dog<|/ref|>."), ("<|Assistant|>", "")]
    talk = [{"role": role, "content": text} for role, text in turns]
    [answer] = engine.generate([engine.processor.from_conversation(talk, [SMALL, WIDE])])
    assert [(b.x2, b.y2, b.image_index, b.note) for b in answer.boxes] == [(70, 30, 1, None)]


def test_usage_counts_prompt_pictures_and_answer(engine):
    inputs = engine.processor(MIXED[1])
    [answer] = engine.generate([inputs], SamplingParams(max_tokens=2))
    assert answer.usage.prompt_tokens == len(inputs.input_ids)
    assert answer.usage.image_tokens == int(inputs.images_seq_mask.sum())


def test_messages_and_ready_inputs_are_the_same_to_it(engine):
    params = SamplingParams(max_tokens=4)
    ready = [engine.processor(talk) for talk in MIXED]
    left, right = engine.generate(ready, params), engine.generate(MIXED, params)
    assert [(a.text, a.token_ids, a.boxes) for a in left] == [
        (a.text, a.token_ids, a.boxes) for a in right
    ]


def test_a_context_beyond_the_positions_of_the_model_is_refused(models):
    positions = models["mla"].config.language_config.max_position_embeddings
    engine_of(models["mla"], max_model_len=positions)
    with pytest.raises(ValueError, match=f"^max_model_len is {positions + 1}: expected at most"):
        engine_of(models["mla"], max_model_len=positions + 1)


def test_the_end_of_the_context_ends_the_answer(models):
    tokens = len(engine_of(models["mla"]).processor(MIXED[0]).input_ids)
    engine = engine_of(models["mla"], max_model_len=tokens + 3)
    [answer] = engine.generate([MIXED[0]], SamplingParams(max_tokens=10**9, stop_token_ids=[]))
    assert answer.finish_reason == "length"
    assert len(answer.token_ids) == 3


def test_a_model_in_bfloat16_answers(models):
    half = engine_of(copy.deepcopy(models["mla"]).to(torch.bfloat16))
    answers = half.generate(MIXED[:2], SamplingParams(max_tokens=4))
    assert all(len(answer.token_ids) == 4 for answer in answers)


def test_a_processor_of_another_model_is_refused(models):
    settings = ProcessorConfig.for_model(VL2Config.nano())
    with pytest.raises(ValueError, match="load both from the same place"):
        Engine(models["mla"], Processor(TOKENIZER, settings, image_size=56))


def test_scores_that_are_no_numbers_are_an_error(engine, monkeypatch):
    broken = torch.full((1, 1, TOKENIZER.vocab_size), math.nan)
    monkeypatch.setattr(engine.model.language, "logits", lambda hidden: broken)
    [answer] = engine.generate([MIXED[0]])
    assert (answer.finish_reason, answer.token_ids) == ("error", [])
    assert answer.error_code == "engine_error"
    assert answer.error.startswith("the model's scores are not numbers after 0 tokens")


@pytest.mark.parametrize("sizes", [{"max_num_seqs": 0}, {"block_size": -1}, {"max_model_len": 1}])
def test_bad_sizes_are_refused(sizes):
    with pytest.raises(ValueError, match="expected a whole number"):
        EngineConfig(**sizes)
