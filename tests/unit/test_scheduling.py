"""Continuous batching: whatever shares a step, a block or a picture, the tokens are the same."""

import math
import random
import time
from collections.abc import Callable

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
from torch.utils.flop_counter import FlopCounterMode

from vl2.engine.config import SamplingParams
from vl2.engine.engine import Engine
from vl2.model.vl2 import VL2Model

SHORT = SamplingParams(max_tokens=6)
MARK = "purple"
"""Word by which the tests know a request that goes wrong."""


@pytest.fixture(scope="module")
def models() -> dict[str, VL2Model]:
    return {attention: random_model(attention) for attention in ATTENTION}


@pytest.fixture
def engine(models) -> Engine:
    return engine_of(models["mla"])


def tokens_of(answers) -> list[list[int]]:
    return [answer.token_ids for answer in answers]


def alone(model: VL2Model, talks, params=SHORT) -> list[list[int]]:
    """Tokens of each conversation in an engine of its own that shares nothing."""
    sizes = {"enable_prefix_caching": False, "vision_cache_gib": 0.0}
    return [engine_of(model, **sizes).generate([talk], params)[0].token_ids for talk in talks]


@pytest.mark.parametrize("attention", ATTENTION)
def test_requests_that_come_while_others_run_change_nothing(models, attention):
    engine = engine_of(models[attention], max_num_seqs=3, max_num_batched_tokens=24)
    waiting, texts = list(enumerate(MIXED)), {}
    while waiting or engine.has_unfinished_requests:
        if waiting:
            number, talk = waiting.pop(0)
            engine.add_request(number, talk, SHORT)
        for progress in engine.step():
            if progress.completion:
                texts[progress.sequence.request_id] = progress.completion.token_ids
    assert [texts[number] for number in range(len(MIXED))] == alone(models[attention], MIXED)


@pytest.mark.parametrize("attention", ATTENTION)
def test_a_sequence_that_gave_up_its_blocks_ends_with_the_same_tokens(models, attention):
    talks = [user(f"{word} the total price of it") for word in ("name", "count", "what is")]
    params = SamplingParams(max_tokens=40, ignore_eos=True)
    longest = max(len(engine_of(models[attention]).processor(talk).input_ids) for talk in talks)
    engine = engine_of(
        models[attention],
        max_model_len=longest + 40,
        block_size=4,
        num_blocks=(longest + 40) // 4 + 3,
    )
    answers = engine.generate(talks, params)
    assert engine.stats.preemptions > 0
    assert tokens_of(answers) == alone(models[attention], talks, params)
    assert engine.blocks.free == engine.blocks.num_blocks


def test_one_step_takes_no_more_tokens_than_its_budget(engine, monkeypatch):
    small = engine_of(engine.model, max_num_batched_tokens=16)
    seen = []
    step = engine.model.language.step

    def count(embeds, *args):
        seen.append(embeds.shape[1])
        return step(embeds, *args)

    monkeypatch.setattr(engine.model.language, "step", count)
    small.generate(MIXED, SHORT)
    assert max(seen) == 16


def test_logits_are_made_for_the_last_token_of_each_prompt_only(engine, monkeypatch):
    rows = []
    logits = engine.model.language.logits

    def count(hidden):
        rows.append(hidden.shape[1])
        return logits(hidden)

    monkeypatch.setattr(engine.model.language, "logits", count)
    engine.generate(MIXED, SamplingParams(max_tokens=1))
    assert rows == [len(MIXED)]


def flops(work: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def test_a_second_question_computes_its_own_tokens_only(models):
    page = picture(200, 90)
    first, second = user("What is the total price?", page), user("What date is it?", page)
    engine = engine_of(models["mla"])
    once = SamplingParams(max_tokens=1)
    cold = flops(lambda: engine.generate([first], once))
    [answer] = engine.generate([second], SHORT)
    cached = answer.usage.cached_tokens
    size = engine.config.block_size
    assert cached >= answer.usage.image_tokens // size * size > 0
    assert engine.stats.tiles_encoded == len(engine.processor(first).images)
    assert answer.token_ids == alone(models["mla"], [second])[0]
    warm = flops(lambda: engine.generate([user("Who?", page)], once))
    assert warm < cold / 5


def test_another_picture_of_the_same_size_is_not_taken_for_it(models):
    engine = engine_of(models["mla"])
    one, other = picture(90, 90), picture(90, 90).rotate(90)
    talks = [user("name the dog", one), user("name the dog", other)]
    assert tokens_of(engine.generate(talks[:1], SHORT)) == alone(models["mla"], talks[:1])
    [answer] = engine.generate(talks[1:], SHORT)
    assert answer.token_ids == alone(models["mla"], talks[1:])[0]
    assert answer.usage.cached_tokens < answer.usage.image_tokens
    assert engine.stats.pictures_reused == 0


def test_a_known_picture_costs_no_vision(models):
    """The question stands before the picture, so that no block is shared."""
    engine = engine_of(models["mla"])
    page = picture(200, 90)
    tower = []
    hook = models["mla"].vision.register_forward_hook(lambda *_: tower.append(1))
    talks = [
        [
            {
                "role": "user",
                "content": [{"type": "text", "text": t}, {"type": "image", "image": page}],
            }
        ]
        for t in (
            "what is the date of this very long page of text?",
            "count the dogs in here, now!",
        )
    ]
    answers = [engine.generate([talk], SHORT)[0] for talk in talks]
    hook.remove()
    assert len(tower) == 1
    assert engine.stats.pictures_reused == 1
    assert tokens_of(answers) == alone(models["mla"], talks)


def test_pictures_of_several_requests_are_encoded_together_in_bounded_chunks(models):
    engine = engine_of(models["mla"], max_tiles_per_batch=4)
    sizes = []
    hook = models["mla"].vision.register_forward_hook(lambda _, args, out: sizes.append(len(out)))
    talks = [user("name", picture(40 + 3 * n, 40 + 3 * n)) for n in range(8)]
    engine.generate(talks, SHORT)
    hook.remove()
    assert len(sizes) < 8
    assert max(sizes) <= 4


def test_questions_about_one_picture_wait_for_the_first_to_compute_it(models):
    page = picture(200, 90)
    talks = [user(f"{word} the total", page) for word in ("name", "count", "what is")]
    engine = engine_of(models["mla"])
    answers = engine.generate(talks, SHORT)
    prompts = [len(engine.processor(talk).input_ids) for talk in talks]
    assert tokens_of(answers) == alone(models["mla"], talks)
    assert engine.stats.prompt_tokens < prompts[0] + sum(prompts[1:]) / 2


def test_several_answers_share_their_prompt(models):
    engine = engine_of(models["mla"])
    params = SamplingParams(max_tokens=8, temperature=2.0, seed=11, n=3)
    one, two = engine.generate(MIXED[1:3], [params, SHORT])[:3], engine.generate(MIXED[1:2], params)
    assert tokens_of(one) == tokens_of(two)
    assert len({tuple(answer.token_ids) for answer in one}) > 1
    assert [answer.index for answer in one] == [0, 0, 0]


def fail_on(word: str, act: Callable[[torch.Tensor], torch.Tensor], model: VL2Model) -> Callable:
    """An output head that acts on the rows of a text that contains `word`."""
    token = TOKENIZER.encode(word)[-1]
    mark = model.language.embed(torch.tensor([[token]]))[0, 0]
    step = model.language.step

    def marked(embeds, *args):
        rows = (embeds[0] == mark).all(dim=-1)
        return act(step(embeds, *args), rows)

    return marked


@pytest.mark.parametrize("failing", range(3))
def test_a_request_whose_step_raises_ends_alone(models, monkeypatch, failing):
    talks = [user("the date of it"), user("count the dogs"), user("What is the price?")]
    talks[failing] = user(f"the {MARK} one")

    def act(hidden, rows):
        if bool(rows.any()):
            raise RuntimeError("out of\nmemory")
        return hidden

    monkeypatch.setattr(models["mla"].language, "step", fail_on(MARK, act, models["mla"]))
    engine = engine_of(models["mla"])
    answers = engine.generate(talks, SHORT)
    monkeypatch.undo()
    assert answers[failing].finish_reason == "error"
    assert answers[failing].error == "RuntimeError: out of memory"
    others = [n for n in range(3) if n != failing]
    assert tokens_of([answers[n] for n in others]) == alone(
        models["mla"], [talks[n] for n in others]
    )
    assert engine.blocks.free == engine.blocks.num_blocks


def test_a_row_that_is_no_number_ends_its_request_alone(models, monkeypatch):
    talks = [user("the date of it"), user(f"the {MARK} one"), user("What is the price?")]

    def act(hidden, rows):
        if bool(rows.any()):
            hidden = hidden.clone()
            first = int(rows.nonzero()[0])
            hidden[:, first : first + 8] = math.nan
        return hidden

    monkeypatch.setattr(models["mla"].language, "step", fail_on(MARK, act, models["mla"]))
    engine = engine_of(models["mla"])
    answers = engine.generate(talks, SHORT)
    monkeypatch.undo()
    assert [answer.finish_reason for answer in answers] == ["length", "error", "length"]
    assert "not numbers" in answers[1].error
    assert tokens_of(answers[::2]) == alone(models["mla"], talks[::2])
    [again] = engine.generate(talks[1:2], SHORT)
    assert again.usage.cached_tokens == 0  # nothing of the failed one is found
    assert again.token_ids == alone(models["mla"], talks[1:2])[0]


def test_a_picture_that_breaks_the_tower_ends_its_request_alone(models, monkeypatch):
    bad = picture(64, 64)
    talks = [user("name", picture(50, 50)), user("name", bad), user("the date")]
    engine = engine_of(models["mla"])
    tiles = engine.processor(talks[1]).images[0]
    encode = models["mla"].encode_images

    def broken(images, crops):
        if any(torch.equal(tile, tiles) for tile in images[0]):
            raise MemoryError("no room")
        return encode(images, crops)

    monkeypatch.setattr(models["mla"], "encode_images", broken)
    answers = engine.generate(talks, SHORT)
    monkeypatch.undo()
    assert [answer.finish_reason for answer in answers] == ["length", "error", "length"]
    assert tokens_of(answers[::2]) == alone(models["mla"], talks[::2])


def test_an_abort_frees_the_blocks_at_any_point(models):
    for steps in range(6):
        engine = engine_of(models["mla"], max_num_batched_tokens=32)
        engine.add_request("one", MIXED[1], SHORT)
        engine.add_request("two", MIXED[2], SHORT)
        found = {}
        for _ in range(steps):
            engine.step()
        completions = engine.abort("one")
        assert [c.finish_reason for c in completions] == ["abort"]
        assert engine.abort("one") == []
        while engine.has_unfinished_requests:
            found |= {p.sequence.request_id: p.completion for p in engine.step()}
        assert list(found) == ["two"]
        assert found["two"].token_ids == alone(models["mla"], MIXED[2:3])[0]
        assert engine.blocks.free == engine.blocks.num_blocks


def test_a_deadline_ends_a_request(models):
    engine = engine_of(models["mla"])
    engine.add_request("late", MIXED[0], SHORT, deadline=time.monotonic() - 1)
    engine.add_request("good", MIXED[2], SHORT, deadline=time.monotonic() + 600)
    ends = {}
    while engine.has_unfinished_requests:
        ends |= {p.sequence.request_id: p.completion for p in engine.step()}
    assert ends["late"].finish_reason == "queue_timeout"
    assert ends["good"].token_ids == alone(models["mla"], MIXED[2:3])[0]


def test_a_listener_that_raises_leaves_nothing_behind(engine):
    def stumble(index, delta):
        raise KeyError("listener")

    with pytest.raises(KeyError, match="listener"):
        engine.generate(MIXED, SHORT, on_token=stumble)
    assert not engine.has_unfinished_requests
    assert engine.blocks.free == engine.blocks.num_blocks


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("how", [{}, {"temperature": 0.7, "seed": 3}])
def test_guessed_tokens_change_no_answer(models, attention, how):
    params = SamplingParams(max_tokens=48, ignore_eos=True, **how)
    talks = [*MIXED[:2], user("one two one two one two one")]
    plain = engine_of(models[attention]).generate(talks, params)
    engine = engine_of(models[attention], speculative_tokens=5, prompt_lookup=1)
    guessed = engine.generate(talks, params)
    assert tokens_of(guessed) == tokens_of(plain)
    assert engine.stats.drafted_tokens > engine.stats.accepted_drafts
    assert how or engine.stats.accepted_drafts > 0


def test_a_cache_smaller_than_a_context_is_refused(models):
    with pytest.raises(
        ValueError, match="num_blocks is 2: one context of 64 tokens needs 4 blocks"
    ):
        engine_of(models["mla"], max_model_len=64, num_blocks=2)


def test_random_traffic_ends_completely_and_gives_everything_back(models):
    rng = random.Random(4)
    engine = engine_of(models["mla"], max_num_seqs=4, max_num_batched_tokens=48, max_model_len=256)
    free = engine.blocks.free
    too_long = user("x" * 5000)
    talks = [*MIXED, user("the total", picture(60, 40)), too_long]
    begun, ended = set(), set()
    for number in range(60):
        talk = rng.choice(talks)
        params = SamplingParams(max_tokens=rng.randint(1, 12), temperature=rng.choice([0, 1.0]))
        if talk is too_long:
            with pytest.raises(ValueError, match="leaves no room"):
                engine.add_request(number, talk, params)
        else:
            engine.add_request(number, talk, params)
            begun.add(number)
        if begun - ended and rng.random() < 0.3:
            victim = rng.choice(sorted(begun - ended))
            ended |= {victim} if engine.abort(victim) else set()
        for _ in range(rng.randint(0, 3)):
            ended |= {p.sequence.request_id for p in engine.step() if p.completion}
    while engine.has_unfinished_requests:
        ended |= {p.sequence.request_id for p in engine.step() if p.completion}
    assert ended == begun
    assert engine.blocks.free == free
