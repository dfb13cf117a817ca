"""What the engine's process tells the server, frame by frame."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from tests.unit.small_engines import engine_of, random_model

from vl2.serve.engine_process import EngineProcess
from vl2.serve.wire import Link, Message


def told(*news: Message) -> list[list[Message]]:
    """The news of each frame that is sent for news that come together."""
    ours, theirs = socket.socketpair()
    near, far = Link(ours), Link(theirs)

    async def tell() -> None:
        process = EngineProcess(engine_of(random_model()), near)
        for one in news:
            process._tell(one)
        await asyncio.sleep(0)

    asyncio.run(tell())
    near.close()
    frames: list[Any] = []
    try:
        while True:
            frames.append(far.receive()[0]["news"])
    except EOFError:
        far.close()
    return frames


def test_a_trace_has_a_frame_of_its_own():
    """One may fill most of a frame, so that two would be more than it may hold."""
    large = [{"id": n, "answer": 0, "end": {"trace": "x"}} for n in range(3)]
    small = [{"id": n, "answer": 0, "delta": "a"} for n in range(3, 6)]
    frames = told(*large[:2], *small, large[2])
    assert frames == [[large[0]], [large[1]], [large[2]], small]


def test_news_of_one_answer_that_wait_together_are_one():
    parts = [{"id": 1, "answer": 0, "delta": text, "tokens": [text]} for text in "abc"]
    end = {"id": 1, "answer": 0, "end": {"finish_reason": "stop"}}
    other = {"id": 1, "answer": 1, "delta": "x"}
    both = {**parts[0], "delta": "abc", "tokens": ["a", "b", "c"], **end}
    assert told(*parts, other, end) == [[both, other]]
