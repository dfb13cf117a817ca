"""A request that is wrong, or goes wrong, ends alone: in a list and in the engine for asyncio."""

import asyncio
import re
from dataclasses import replace

import pytest
import torch
from tests.unit.small_engines import MIXED, engine_of, picture, random_model, user

import vl2
from vl2.engine import engine as engine_module
from vl2.engine.async_engine import AsyncEngine
from vl2.engine.config import Completion, SamplingParams
from vl2.engine.engine import Engine
from vl2.engine.sequence import Sequence

pytestmark = pytest.mark.usefixtures("unchecked_types")

SHORT = SamplingParams(max_tokens=4)


@pytest.fixture(scope="module")
def model():
    return random_model()


@pytest.fixture
def engine(model) -> Engine:
    return engine_of(model)


def changed(**tensors):
    """Inputs with a picture whose tensors were changed after processing."""

    def build(engine: Engine):
        ready = engine.processor(user("x", picture(50, 50)))
        change = {name: change(getattr(ready, name)) for name, change in tensors.items()}
        return replace(ready, **change)

    return build


WRONG = {
    "int": (5, "the conversation is of type int: expected a list of messages"),
    "none": (None, "the conversation is of type NoneType"),
    "text": ("hi", "the conversation is of type str"),
    "generator": (lambda _: (m for m in user("x")), "the conversation is of type generator"),
    "message": (user("x")[0], "the conversation is of type dict: expected a list of messages"),
    "set": ({"a"}, "the conversation is of type set"),
    "nested": (
        [user("x")],
        "message 0 is not an object with 'role' and 'content', but of type list",
    ),
    "numbers": ([1, 2], "message 0 is not an object"),
    "role": ([{"role": [], "content": "x"}], r"message 0 has role \[\]"),
    "content": ([{"role": "user", "content": 3}], "message 0 has content of type int"),
    "ids [1, t]": (changed(input_ids=lambda t: t[None]), r"input_ids .* \[1, \d+\]: expected"),
    "ids as floats": (changed(input_ids=lambda t: t.float()), "input_ids of a sample is float32"),
    "ids as a list": (changed(input_ids=lambda t: t.tolist()), "input_ids of a sample is list"),
    "foreign ids": (changed(input_ids=lambda t: t + 10**6), "input_ids of a sample has 1000"),
    "negative ids": (changed(input_ids=lambda t: t - 10**6), "input_ids of a sample has -"),
    "no ids": (
        changed(input_ids=lambda t: t[:0], images_seq_mask=lambda t: t[:0]),
        "0 input_ids and an images_seq_mask of 0: expected as many, and at least one",
    ),
    "no tiles": (changed(images=lambda t: None), "images of a sample is NoneType"),
    "bytes": (changed(images=lambda t: t.byte()), "images of a sample is uint8"),
    "small tiles": (changed(images=lambda t: t[..., :14, :14]), r"expected tiles of \[3, "),
    "fewer tiles": (changed(images=lambda t: t[:0]), "0 tiles for crops"),
    "mask": (changed(images_seq_mask=lambda t: t.long()), "images_seq_mask of a sample is int64"),
    "short mask": (changed(images_seq_mask=lambda t: t[1:]), "expected as many"),
    "crops": (changed(images_spatial_crop=lambda t: -t), "images_spatial_crop of a sample is"),
}  # fmt: skip


def both(engine: Engine, talks: list, params=SHORT) -> list[list[Completion]]:
    """Answers of `generate` and of the engine for asyncio, each request with a task of its own."""

    async def run() -> list[Completion]:
        async with AsyncEngine(engine) as answers:
            told = [asyncio.create_task(answers.generate(talk, params)) for talk in talks]
            return [answer for task in told for answer in await task]

    return [engine.generate(talks, params), asyncio.run(run())]


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_conversation_is_an_error_of_its_own(engine, name):
    wrong, message = WRONG[name]
    wrong = wrong(engine) if callable(wrong) else wrong
    alone = engine.generate([MIXED[0]], SHORT)[0].token_ids
    for before, bad, after in both(engine, [MIXED[0], wrong, MIXED[0]]):
        assert before.token_ids == after.token_ids == alone
        assert (bad.finish_reason, bad.text, bad.token_ids) == ("error", "", [])
        assert bad.error_code == "invalid_request"
        assert re.search(message, bad.error)
        assert "\n" not in bad.error
    assert engine.blocks.free == engine.blocks.num_blocks


def test_a_prompt_beyond_the_context_is_refused_with_numbers(model):
    tokens = len(engine_of(model).processor(MIXED[1]).input_ids)
    small = engine_of(model, max_model_len=tokens)
    fits, refused = small.generate(MIXED[:2], SamplingParams(max_tokens=3))
    assert (refused.index, refused.finish_reason, refused.token_ids) == (1, "error", [])
    assert (refused.error_code, fits.error_code) == ("context_length_exceeded", None)
    assert re.match(rf"conversation 1 has {tokens} prompt tokens.*{tokens} ", refused.error)
    assert (
        fits.token_ids
        == engine_of(model).generate(MIXED[:1], SamplingParams(max_tokens=3))[0].token_ids
    )


def test_params_must_fit_the_conversations(engine):
    with pytest.raises(ValueError, match="2 params for 3 conversations"):
        engine.generate(MIXED[:3], [SamplingParams()] * 2)


def test_each_of_several_answers_to_a_wrong_conversation_is_there(engine):
    for answers in both(engine, [5], SamplingParams(n=3)):
        assert [answer.finish_reason for answer in answers] == ["error"] * 3


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float64])
def test_pictures_in_other_floats_are_taken(engine, kind):
    ready = engine.processor(user("x", picture(50, 50)))
    other = replace(ready, images=ready.images.to(kind).requires_grad_())
    for plain, same in both(engine, [ready, other]):
        assert (plain.error, same.error) == (None, None)
        assert kind == torch.bfloat16 or same.token_ids == plain.token_ids


@pytest.mark.gpu
def test_inputs_on_the_card_are_taken():
    engine = engine_of(random_model().to("cuda"))
    ready = engine.processor(user("x", picture(50, 50)))
    names = ("input_ids", "images", "images_seq_mask", "images_spatial_crop")
    there = replace(ready, **{name: getattr(ready, name).cuda() for name in names})
    plain, same = engine.generate([ready, there], SHORT)
    assert same.token_ids == plain.token_ids


@pytest.mark.parametrize(
    ("conversations", "message"),
    [
        (MIXED[2], r"conversations is a single conversation: .* generate\(\[messages\]\) for one"),
        (MIXED[0][0], r"conversations is of type dict: .* generate\(\[messages\]\)"),
        (None, "conversations is of type NoneType"),
        ("What is this?", "conversations is of type str"),
        ((talk for talk in MIXED), "conversations is of type generator"),
        (lambda engine: engine.processor(MIXED[0]), "conversations is of type ModelInputs"),
    ],
)
def test_what_is_no_list_of_conversations_is_refused_with_the_right_form(
    engine, conversations, message
):
    given = conversations(engine) if callable(conversations) else conversations
    with pytest.raises(ValueError, match=message) as caught:
        engine.generate(given, SHORT)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("params", [{"max_tokens": 3}, "greedy", 5, [None, 7]])
def test_params_of_another_type_are_refused(engine, params):
    with pytest.raises(ValueError, match=r"params is of type .*: expected SamplingParams"):
        engine.generate([MIXED[0], MIXED[0]], params)

    async def run():
        async with AsyncEngine(engine) as answers:
            await answers.generate(MIXED[0], params)

    with pytest.raises(ValueError, match=r"params is of type .*: expected SamplingParams"):
        asyncio.run(run())


@pytest.mark.parametrize("timeout", ["1", True, -1, float("nan")])
def test_a_timeout_is_a_number_of_seconds(engine, timeout):
    async def run():
        async with AsyncEngine(engine) as answers:
            await answers.generate(MIXED[0], SHORT, timeout=timeout)

    with pytest.raises(ValueError, match=r"timeout is .*: expected seconds from 0"):
        asyncio.run(run())


@pytest.mark.parametrize(("stop", "fails"), [(10**9, True), (-99999, True), (-1, False)])
def test_a_stop_token_of_another_vocabulary_is_an_error_of_its_own(engine, stop, fails):
    size = engine.model.config.language_config.vocab_size
    talk, plain = MIXED[0], SamplingParams(max_tokens=4, min_tokens=4)
    [alone] = engine.generate([talk], plain)
    for token in (stop, size if fails else -size, alone.token_ids[0] - size):
        odd = replace(plain, stop_token_ids=[token])
        [answer] = engine.generate([talk], odd)
        if fails and not -size <= token < size:
            assert (answer.finish_reason, answer.token_ids) == ("error", [])
            assert answer.error_code == "invalid_request"
            assert answer.error == (
                f"stop_token_ids has {token}: expected tokens of the model, 0 to {size - 1}"
            )
        else:
            assert answer.token_ids == alone.token_ids  # no token, so it ends and bars nothing


@pytest.mark.parametrize("place", ["sample", "accept", "boxes", "draft"])
def test_whatever_breaks_for_one_request_ends_it_alone(model, monkeypatch, place):
    """Not only the forward pass: choosing, accepting, finishing and guessing are of one request."""
    engine = engine_of(model, speculative_tokens=2)
    good, bad = MIXED[0], user("bad", picture(50, 50))
    alone = engine.generate([good], SHORT)[0].token_ids

    def is_bad(sequence: Sequence) -> bool:
        return bool(sequence.prompt.pictures)

    def breaking(function, pick):
        def broken(*given, **named):
            if pick(*given):
                raise KeyError("of this\nrequest")
            return function(*given, **named)

        return broken

    state = lambda logits, states, _: any(s.params.seed == 1 for s in states)  # noqa: E731
    if place == "sample":
        monkeypatch.setattr(engine_module, "sample", breaking(engine_module.sample, state))
    elif place == "accept":
        monkeypatch.setattr(Sequence, "accept", breaking(Sequence.accept, lambda s, _: is_bad(s)))
    elif place == "draft":
        monkeypatch.setattr(Engine, "_draft", breaking(Engine._draft, lambda _, s: is_bad(s)))
    else:
        scored = breaking(Sequence.completion, lambda s: is_bad(s) and s.finish_reason == "length")
        monkeypatch.setattr(Sequence, "completion", scored)
    params = [SHORT, replace(SHORT, seed=1, ignore_eos=True), SHORT]
    first, failed, last = engine.generate([good, bad, good], params)
    assert first.token_ids == last.token_ids == alone
    assert (failed.finish_reason, failed.error) == ("error", r"KeyError: 'of this\nrequest'")
    assert failed.error_code == "engine_error"
    assert engine.blocks.free == engine.blocks.num_blocks

    async def run() -> list[Completion]:
        async with AsyncEngine(engine) as answers:
            tasks = [answers.generate(t, p) for t, p in zip([good, bad], params, strict=False)]
            together = [answer for found in await asyncio.gather(*tasks) for answer in found]
            return [*together, *await answers.generate(good, SHORT)]

    first, failed, last = asyncio.run(run())
    assert first.token_ids == last.token_ids == alone
    assert failed.finish_reason == "error"


@pytest.mark.parametrize(
    "raised",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory:\nyou tried to allocate 9 bytes"),
    ],
)
def test_memory_that_runs_out_in_a_step_is_told_with_the_remedy(engine, monkeypatch, raised):
    run = engine._runner.run

    def greedy(plan):
        if any(item.sequence.prompt.pictures for item in plan):
            raise raised
        return run(plan)

    monkeypatch.setattr(engine._runner, "run", greedy)
    alone = engine.generate([MIXED[0]], SHORT)[0].token_ids
    good, bad = engine.generate([MIXED[0], MIXED[1]], SHORT)
    assert good.token_ids == alone
    assert bad.finish_reason == "error"
    assert bad.error_code == "out_of_memory"
    assert bad.error.startswith("out of memory: send fewer or smaller pictures")
    assert "\n" not in bad.error


@pytest.mark.parametrize(
    "sizes", [{"num_blocks": 2**45}, {"num_blocks": 2**62}, {"block_size": 2**60}]
)
def test_a_cache_that_cannot_be_allocated_is_one_line_with_the_remedy(model, sizes):
    with pytest.raises(
        ValueError, match=r"GiB, which cannot be allocated: give a smaller"
    ) as found:
        engine_of(model, **sizes)
    assert "\n" not in str(found.value)


def test_engines_and_processors_say_what_they_are(engine):
    shown = r"torch.float32 on cpu, context of \d+ tokens, 8 answers at a time, \d+ blocks of 16"
    assert re.fullmatch(rf"Engine\({shown} tokens\)", repr(engine))
    assert re.fullmatch(
        r"Processor\(\d+ tokens, tiles of \d+ pixels, tiling='\w+', max_tiled_images=\d+\)",
        repr(engine.processor),
    )


def test_the_package_shows_its_interface_alone():
    assert dir(vl2) == sorted(vl2.__all__)
    assert all(getattr(vl2, name) is not None for name in dir(vl2))
