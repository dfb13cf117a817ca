"""Answers as streams: the same as the engine's, and nothing of a request outlives its listener."""

import asyncio
import contextlib
import time

import pytest
from tests.unit.small_engines import MIXED, engine_of, random_model, user

from vl2.engine.async_engine import AsyncEngine
from vl2.engine.config import SamplingParams
from vl2.engine.engine import Engine

SHORT = SamplingParams(max_tokens=6)
LONG = SamplingParams(max_tokens=4000, ignore_eos=True)


@pytest.fixture(scope="module")
def model():
    return random_model()


@pytest.fixture
def engine(model) -> Engine:
    return engine_of(model)


def idle(engine: Engine) -> bool:
    return not engine.has_unfinished_requests and engine.blocks.free == engine.blocks.num_blocks


async def settle(engine: Engine) -> None:
    """Wait until the engine's thread has obeyed."""
    for _ in range(500):
        if idle(engine):
            return
        await asyncio.sleep(0.01)
    raise AssertionError("requests are left in the engine")


def test_streams_join_to_the_answers_of_the_engine(model, engine):
    wanted = engine_of(model).generate(MIXED, SHORT)

    async def listen(answers: AsyncEngine, talk):
        text, completion = "", None
        async for update in answers.stream(talk, SHORT):
            text += update.delta
            completion = update.completion or completion
        return text, completion.token_ids

    async def run():
        async with AsyncEngine(engine) as answers:
            return await asyncio.gather(*(listen(answers, talk) for talk in MIXED))

    assert asyncio.run(run()) == [(answer.text, answer.token_ids) for answer in wanted]
    assert idle(engine)


def test_several_answers_come_in_order(model, engine):
    params = SamplingParams(max_tokens=6, temperature=2.0, seed=5, n=3)

    async def run():
        async with AsyncEngine(engine) as answers:
            return await answers.generate(MIXED[0], params)

    found = asyncio.run(run())
    wanted = engine_of(model).generate([MIXED[0]], params)
    assert [answer.token_ids for answer in found] == [answer.token_ids for answer in wanted]


def test_who_stops_listening_frees_the_blocks_while_others_go_on(model, engine):
    async def run():
        async with AsyncEngine(engine) as answers:
            other = asyncio.create_task(answers.generate(MIXED[2], SHORT))
            async with contextlib.aclosing(answers.stream(MIXED[0], LONG)) as updates:
                async for update in updates:
                    assert update.delta
                    break
            found = await other
            await settle(engine)
            return found

    [found] = asyncio.run(run())
    assert found.token_ids == engine_of(model).generate([MIXED[2]], SHORT)[0].token_ids


def test_a_cancelled_task_frees_the_blocks(engine):
    async def run():
        async with AsyncEngine(engine) as answers:
            tasks = [asyncio.create_task(answers.generate(talk, LONG)) for talk in MIXED]
            await asyncio.sleep(0.2)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await settle(engine)

    asyncio.run(run())


def test_a_timeout_ends_an_answer(engine):
    async def run():
        async with AsyncEngine(engine) as answers:
            start = time.monotonic()
            [late] = await answers.generate(MIXED[0], LONG, timeout=0.3)
            return late, time.monotonic() - start

    late, seconds = asyncio.run(run())
    assert late.finish_reason == "timeout"
    assert 0.3 <= seconds < 5


def test_what_cannot_be_answered_is_an_error_of_its_own(engine):
    async def run():
        async with AsyncEngine(engine) as answers:
            good = asyncio.create_task(answers.generate(MIXED[0], SHORT))
            [bad] = await answers.generate(user("x " * 9000), SHORT)
            return bad, *await good

    bad, good = asyncio.run(run())
    assert bad.finish_reason == "error"
    assert "leaves no room" in bad.error
    assert good.finish_reason in ("stop", "length")


def test_closing_tells_those_who_wait_and_those_who_come(engine):
    async def run():
        answers = AsyncEngine(engine)
        waiting = asyncio.create_task(answers.generate(MIXED[0], LONG))
        await asyncio.sleep(0.2)
        await answers.close()
        with pytest.raises(RuntimeError, match="the engine is closed"):
            await waiting
        with pytest.raises(RuntimeError, match="the engine is closed"):
            await answers.generate(MIXED[0], SHORT)

    asyncio.run(run())
    assert idle(engine)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_engine_that_breaks_tells_everybody(engine, monkeypatch):
    def broken():
        raise OSError("disk on fire")

    async def run():
        async with AsyncEngine(engine) as answers:
            monkeypatch.setattr(engine, "step", broken)
            with pytest.raises(RuntimeError, match="the engine stopped: OSError: disk on fire"):
                await answers.generate(MIXED[0], SHORT)
            with pytest.raises(RuntimeError, match="disk on fire"):
                await answers.generate(MIXED[0], SHORT)

    asyncio.run(run())
