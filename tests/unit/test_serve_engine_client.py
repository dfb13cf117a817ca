"""The server's side of an engine's process that dies, lies, or cannot load its model again."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from vl2.model_folder import resolve
from vl2.processing.processor import Processor
from vl2.serve import engine_client
from vl2.serve.engine_client import EngineClient, EngineFailed
from vl2.serve.errors import ApiError
from vl2.serve.wire import start_process


def client(folder: Path, failing: tuple[int, ...] = ()) -> EngineClient:
    layout = asdict(Processor.from_pretrained(resolve("nano")).layout)
    start = {"folder": str(folder), "failing": list(failing), "facts": {"layout": layout}}
    return EngineClient(start, module="tests.unit.broken_engine")


async def ask(engine: EngineClient, prompt: str, timeout: float = 60, **more: Any) -> Any:
    """The last news of a request, or the code of its error."""
    message = {"kind": "tokenize", "prompt": prompt, "timeout": timeout, **more}
    found = None
    try:
        async with aclosing(engine.request(message, None)) as news:
            async for one in news:
                found = one
    except ApiError as error:
        return error.code
    return found["tokens"]


def run(work: Any) -> Any:
    return asyncio.run(asyncio.wait_for(work, 60))


def test_what_was_not_begun_is_sent_again_once(tmp_path: Path):
    async def work() -> list[Any]:
        engine = client(tmp_path)
        await engine.start()
        found = [await ask(engine, "die once"), await ask(engine, "hello")]
        found.append(await ask(engine, "die"))
        await engine.stop()
        return found

    assert run(work()) == [[1], [1], "engine_error"]


@pytest.mark.parametrize("nonsense", ["speak nonsense", "send no message"])
def test_an_engine_that_makes_no_sense_is_replaced_and_every_request_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nonsense: str
):
    """Nobody waits for what an exception in the server swallowed."""
    monkeypatch.setattr(engine_client, "FIRST_DELAY", 0.01)

    async def work() -> list[Any]:
        engine = client(tmp_path)
        await engine.start()
        begun = asyncio.create_task(ask(engine, "begin", kind="ask", params={"n": 1}))
        while not any(job.heard for job in engine._jobs.values()):
            await asyncio.sleep(0.01)
        found = [await ask(engine, nonsense), await begun, engine.restarts]
        while engine.ready(60) is not None:
            await asyncio.sleep(0.01)
        found.append(await ask(engine, "hello"))
        await engine.stop()
        return found

    assert run(work()) == ["engine_error", "engine_restarted", 2, [2]]


def test_what_an_engine_that_makes_no_sense_had_not_begun_is_sent_again(tmp_path: Path):
    async def work() -> Any:
        engine = client(tmp_path)
        await engine.start()
        found = await ask(engine, "speak nonsense once")
        await engine.stop()
        return found

    assert run(work()) == [1]


def test_the_engine_s_process_ends_with_an_exception_that_nobody_caught():
    """One that lived on would leave the request without an end; a request that fails is none."""
    told = {"model": "nano", "dtype": "auto", "device": "cpu", "quantization": None}
    process, link = start_process("vl2.serve.engine_process", {"JAXTYPING_DISABLE": "1"})
    try:
        link.send({"kind": "start", "config": {}, "adapters": {}, **told})
        assert link.receive(60)[0]["kind"] == "ready"
        link.send({"kind": "ask", "id": 1})
        while (heard := link.receive(60)[0])["kind"] != "news":
            continue
        assert heard["news"][0]["failed"].startswith("KeyError")
        link.send({"kind": "ask"})
        assert process.wait(30) == 1
    finally:
        process.kill()
        process.wait()
        link.close()


def test_a_model_that_cannot_be_loaded_ends_the_start(tmp_path: Path):
    async def work() -> None:
        engine = client(tmp_path, failing=(0,))
        try:
            await engine.start()
        finally:
            await engine.stop()

    with pytest.raises(EngineFailed, match="no such model"):
        run(work())


def test_a_model_that_cannot_be_loaded_again_leaves_nobody_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(engine_client, "FIRST_DELAY", 0.01)

    async def work() -> str:
        engine = client(tmp_path, failing=(1, 2, 3, 4, 5))
        await engine.start()
        found = await ask(engine, "die once")
        await engine.gave_up.wait()
        await engine.stop()
        return found

    assert run(work()) == "engine_error"


def test_a_request_ends_at_its_limit_whatever_the_engine_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(engine_client, "LATE", 0.1)

    async def work() -> list[Any]:
        engine = client(tmp_path)
        await engine.start()
        found = [await ask(engine, "be silent", 0.1), await ask(engine, "hello")]
        await engine.stop()
        return found

    assert run(work()) == ["timeout", [0]]
