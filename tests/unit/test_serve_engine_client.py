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


def client(folder: Path, failing: tuple[int, ...] = ()) -> EngineClient:
    layout = asdict(Processor.from_pretrained(resolve("nano")).layout)
    start = {"folder": str(folder), "failing": list(failing), "facts": {"layout": layout}}
    return EngineClient(start, module="tests.unit.broken_engine")


async def ask(engine: EngineClient, prompt: str, timeout: float = 60) -> Any:
    """The last news of a request, or the code of its error."""
    message = {"kind": "tokenize", "prompt": prompt, "timeout": timeout}
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
