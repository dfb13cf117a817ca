"""Pictures that other processes cut and pass on in shared memory are the processor's own views."""

from __future__ import annotations

import asyncio
import os
import random
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.unit.pdf_files import PdfPage, pdf_of, show
from tests.unit.picture_files import picture, to_bytes

import vl2.serve.media
from vl2.model_folder import resolve
from vl2.processing.image_gate import admit
from vl2.processing.processor import Processor
from vl2.processing.tiling import views_of
from vl2.serve import apart
from vl2.serve.config import Limits
from vl2.serve.engine_client import Facts
from vl2.serve.engine_process import read_views
from vl2.serve.errors import ApiError
from vl2.serve.fetch import fetcher
from vl2.serve.media import Media, _joined
from vl2.serve.prompt import Attachment, Plan, params_of
from vl2.serve.schema import ChatRequest, FileData
from vl2.serve.wire import to_memory
from vl2.serve.workers import Workers

PROCESSOR = Processor.from_pretrained(resolve("nano"))
LIMITS = Limits(workers=1, max_images=5, max_pixels=500_000, max_request_pixels=900_000)


@pytest.fixture(scope="module")
def media() -> Iterator[Media]:
    workers = Workers(LIMITS)
    yield Media(workers=workers, fetcher=fetcher((), LIMITS.max_image), limits=LIMITS)
    workers.close()


def facts(context: int = 4096) -> Facts:
    return Facts(
        context=context,
        max_num_seqs=2,
        tiling=PROCESSOR.config.tiling,
        max_tiled_images=PROCESSOR.config.max_tiled_images,
        single_questions=PROCESSOR.config.single_questions,
        adapters=[],
        layout=PROCESSOR.layout,
    )


def plan(images: list[Image.Image], **fields: Any) -> Plan:
    request = ChatRequest(model="m", messages=[{"role": "user", "content": "x"}])  # type: ignore[list-item]
    parts = [Attachment(param=f"{n}", data=to_bytes(i, "PNG")) for n, i in enumerate(images)]
    chosen = {"tiling": None, "max_tiles": None, **fields}
    messages = [{"role": "user", "content": parts}]
    return Plan(messages=messages, params=params_of(request, LIMITS), **chosen)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("tiling", ["released", "content"])
def test_pictures_are_cut_as_the_processor_cuts_them(media: Media, count: int, tiling: str):
    draw = random.Random(count)
    images = [picture(draw.randrange(5, 400), draw.randrange(5, 400)) for _ in range(count)]
    files = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    found = asyncio.run(media.gather(plan(images, tiling=tiling), facts()))
    assert found.memory is not None
    views = read_views(found.views, [found.memory])
    whole = count > PROCESSOR.config.max_tiled_images
    for view, image in zip(views, images, strict=True):
        own = views_of(admit(image), PROCESSOR.layout, tiling, whole=whole)  # type: ignore[arg-type]
        assert np.array_equal(view.tiles, own.tiles)
        assert (view.canvas, view.sent) == (own.canvas, own.sent)
    assert len(os.listdir("/proc/self/fd")) <= files + 2  # noqa: PTH208 - a worker's link


def test_pages_that_are_too_large_as_pictures_are_refused(media: Media):
    """They are sent back as pictures of a request, so that its limit is theirs."""
    files = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    pdf = pdf_of([PdfPage(content=show("Hello", 20, 100))])
    source = Attachment(param="file.file_data", data=pdf, pdf=FileData(file_data="x", dpi=72))
    told, drawn = asyncio.run(media.pages(source))
    assert (told["pages"], len(drawn)) == ([1], 1)
    small = replace(media, limits=replace(LIMITS, max_body=1024))
    with pytest.raises(ApiError) as refused:
        asyncio.run(small.pages(source))
    assert (refused.value.status, refused.value.code) == (413, "file_too_large")
    assert len(os.listdir("/proc/self/fd")) <= files + 2  # noqa: PTH208 - a worker's link


@pytest.mark.parametrize(
    ("sizes", "context", "code"),
    [
        ([(9, 9)] * 6, 4096, "too_many_images"),
        ([(700, 700)] * 2, 4096, "too_many_pixels"),
        ([(800, 800)], 4096, "invalid_image"),
        ([(300, 300)] * 5, 30, "context_length_exceeded"),
    ],
)
def test_budgets_are_checked_before_anything_is_cut(
    media: Media, sizes: list[tuple[int, int]], context: int, code: str
):
    images = [Image.new("L", size) for size in sizes]
    with pytest.raises(ApiError) as refused:
        asyncio.run(media.gather(plan(images), facts(context)))
    assert refused.value.code == code


def test_what_is_cut_is_freed_when_nobody_waits_for_the_rest(
    media: Media, monkeypatch: pytest.MonkeyPatch
):
    made: list[int] = []

    async def run(job: dict[str, Any], data: int) -> tuple[dict[str, Any], list[int]]:
        if job["job"] == "size":
            return {"size": [9, 9]}, []
        if made:  # the first picture is cut at once, the others are not
            await asyncio.sleep(60)
        made.append(to_memory(b"tiles"))
        return {"views": []}, made[:]

    async def ask() -> None:
        async with asyncio.timeout(0.2):
            await media.gather(plan([Image.new("L", (9, 9))] * 3), facts())

    monkeypatch.setattr(media.workers, "run", run)
    with pytest.raises(TimeoutError):
        asyncio.run(ask())
    [memory] = made
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(memory)


def test_memory_that_a_thread_makes_is_freed_when_nobody_waits_for_it(
    media: Media, monkeypatch: pytest.MonkeyPatch
):
    go_on, made = threading.Event(), list[int]()

    def slow(data: bytes) -> int:
        go_on.wait(10)
        made.append(to_memory(data))
        return made[-1]

    async def ask() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await media.gather(plan([picture(400, 400)]), facts())
        go_on.set()
        while asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.sleep(0.01)

    monkeypatch.setattr(apart, "SMALL", 0)
    monkeypatch.setattr(vl2.serve.media, "to_memory", slow)
    asyncio.run(ask())
    [memory] = made
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(memory)


def test_memories_are_joined_in_order_or_all_freed():
    parts = [b"a" * 5_000_000, b"", b"b" * 3]
    joined = _joined([to_memory(part) for part in parts])
    assert os.pread(joined, 9_000_000, 0) == b"".join(parts)
    os.close(joined)
    memories = [os.open(os.devnull, os.O_RDONLY), to_memory(b"b"), to_memory(b"c")]
    with pytest.raises(OSError, match="Bad file descriptor"):
        _joined(memories)
    for memory in memories:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(memory)
