"""The pictures of a request: fetched, measured, cut by a worker, their pixels in shared memory."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, ParamSpec

from vl2 import geometry
from vl2.geometry import Resolution
from vl2.processing.layout import TileLayout
from vl2.serve.apart import apart
from vl2.serve.config import Limits
from vl2.serve.engine_client import Facts
from vl2.serve.errors import ApiError
from vl2.serve.fetch import Fetcher
from vl2.serve.prompt import Attachment, Plan
from vl2.serve.wire import Message, to_memory
from vl2.serve.workers import Workers

P = ParamSpec("P")
Cut = tuple[Message, int]
"""Facts of a source's pictures, and the memory of their tiles."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pictures:
    """The pictures of a request, cut, in order.

    Attributes:
        views: shape of the tiles, canvas, size as sent and notes of each.
        counts: pictures of each source: the chosen pages of a PDF, else one.
        pages: number of the PDF's page of each picture; None for what is no page.
        memory: descriptor of all tiles, one picture after the other; None without pictures.
    """

    views: list[Message]
    counts: list[int]
    pages: list[int | None]
    memory: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Media:
    """Turns sources into tiles within the limits."""

    workers: Workers
    fetcher: Fetcher
    limits: Limits

    async def gather(self, plan: Plan, facts: Facts) -> Pictures:
        """The pictures of a request; their memory is the caller's.

        Raises:
            ApiError: a picture is refused, or they are too many or too large together.
        """
        sources = plan.sources
        if not sources:
            return Pictures(views=[], counts=[], pages=[], memory=None)
        if len(sources) > self.limits.max_images:
            raise self._too_many(len(sources))
        layout, tiling = _fewer_tiles(facts.layout, plan.max_tiles), plan.tiling or facts.tiling
        async with self._opened(sources) as files:
            measured = await self._measured(sources, files)
            counts = [len(told["sizes"]) for told in measured]
            if sum(counts) > self.limits.max_images:
                raise self._too_many(sum(counts))
            whole = sum(counts) > facts.max_tiled_images
            sizes = [size for told in measured for size in told["sizes"] if size]
            self._check_pixels(sizes)
            least = _least_canvases(sizes, layout, None if whole else tiling)
            _check_tokens(least, layout, facts.context)
            how = {"layout": asdict(layout), "tiling": tiling, "whole": whole}
            cut = await _all(
                [self._cut(s, file, how) for s, file in zip(sources, files, strict=True)]
            )
        views = [view for told, _ in cut for view in told["views"]]
        memories = [memory for _, memory in cut]
        try:
            _check_tokens([tuple(view["canvas"]) for view in views], layout, facts.context)
        except ApiError:
            _close(memories)
            raise
        size = sum(os.fstat(memory).st_size for memory in memories)
        return Pictures(
            views=views,
            counts=counts,
            pages=[page for told in measured for page in told.get("pages", [None])],
            memory=await _made(size, _joined, memories) if len(memories) > 1 else memories[0],
        )

    async def layouts(self, source: Attachment, facts: Facts, pictures: int) -> Message:
        """How both rules would cut one of so many pictures of a request."""
        async with self._opened([source]) as [file]:
            whole = pictures > facts.max_tiled_images
            job = {"job": "layout", "layout": asdict(facts.layout), "whole": whole}
            told, _ = await self._run(source, file, job)
            return told

    async def pages(self, source: Attachment) -> tuple[Message, list[bytes]]:
        """Pages of a PDF as PNG files."""
        async with self._opened([source]) as [file]:
            measured = await self._measure(source, file)
            self._check_pixels(measured["sizes"])
            told, [memory] = await self._run(source, file, self._pages_job(source, "png"))
        if (size := sum(told["lengths"])) > self.limits.max_body:
            os.close(memory)
            raise ApiError(
                413,
                "file_too_large",
                f"the pages take {size:,} bytes as PNG: expected at most {self.limits.max_body:,}; "
                "choose fewer, or fewer dpi",
                param=source.param,
            )
        try:
            data, place, files = os.pread(memory, sum(told["lengths"]), 0), 0, []
        finally:
            os.close(memory)
        for length in told["lengths"]:
            files.append(data[place : place + length])
            place += length
        return told, files

    @asynccontextmanager
    async def _opened(self, sources: Sequence[Attachment]) -> AsyncIterator[list[tuple[int, int]]]:
        """Shared memory and size of each source's file, freed at the end."""
        files: list[tuple[int, int]] = []
        try:
            for source in sources:
                data = source.data
                if source.url is not None:
                    data = await self.fetcher.get(source.url, source.param)
                assert data is not None
                files.append((await _made(len(data), to_memory, data), len(data)))
            yield files
        finally:
            for descriptor, _ in files:
                os.close(descriptor)

    async def _measured(
        self, sources: Sequence[Attachment], files: Sequence[tuple[int, int]]
    ) -> list[Message]:
        """Sizes of all, before any is decoded.

        A picture alone is held to every limit when it is cut, and not asked for its size before.
        """
        if len(sources) == 1 and sources[0].pdf is None:
            return [{"sizes": [None]}]
        return [await self._measure(s, file) for s, file in zip(sources, files, strict=True)]

    async def _measure(self, source: Attachment, file: tuple[int, int]) -> Message:
        """Sizes of a picture, or of the chosen pages of a PDF."""
        if source.pdf is not None:
            return (await self._run(source, file, self._pages_job(source, None)))[0]
        told, _ = await self._run(source, file, {"job": "size"})
        return {"sizes": [told["size"]]}

    async def _cut(self, source: Attachment, file: tuple[int, int], how: Message) -> Cut:
        job = self._pages_job(source, "views") if source.pdf is not None else {"job": "views"}
        told, [memory] = await self._run(source, file, {**job, **how})
        return told, memory

    def _pages_job(self, source: Attachment, form: str | None) -> Message:
        assert source.pdf is not None
        return {
            "job": "pages",
            "pages": source.pdf.pages,
            "dpi": source.pdf.dpi,
            "as": form,
            "max_pages": self.limits.max_images,
        }

    async def _run(
        self, source: Attachment, file: tuple[int, int], job: Message
    ) -> tuple[Message, list[int]]:
        descriptor, size = file
        pixels = min(self.limits.max_pixels, self.limits.max_request_pixels)
        limits = {"bytes": size, "max_pixels": pixels}
        try:
            return await self.workers.run({**job, **limits}, descriptor)
        except ApiError as error:
            error.param = source.param
            raise

    def _too_many(self, count: int) -> ApiError:
        limit = self.limits.max_images
        return ApiError(
            400,
            "too_many_images",
            f"the request has {count} pictures and pages: expected at most {limit}; send fewer, or "
            f'choose pages of a PDF, "pages": "1-{limit}"',
        )

    def _check_pixels(self, sizes: Sequence[Sequence[int]]) -> None:
        pixels, limit = sum(wide * high for wide, high in sizes), self.limits.max_request_pixels
        if pixels > limit:
            raise ApiError(
                400,
                "too_many_pixels",
                f"the pictures have {pixels:,} pixels together: expected at most {limit:,}; send "
                "fewer or smaller ones, or PDF pages at fewer dpi",
            )


def read_as(view: Message, layout: TileLayout) -> dict[str, Any]:
    """At which size a picture was read, for `usage.images`."""
    grid = layout.grid(tuple(view["canvas"]))
    return {
        "width": view["sent"][0],
        "height": view["sent"][1],
        "read_width": view["canvas"][0],
        "read_height": view["canvas"][1],
        "tiles_wide": grid.wide,
        "tiles_high": grid.high,
        "tokens": layout.tokens(tuple(view["canvas"])),
        "notes": view["notes"],
    }


def _least_canvases(
    sizes: Sequence[Sequence[int]], layout: TileLayout, rule: str | None
) -> list[Resolution]:
    """The smallest canvases that pictures may get; `rule` is None for one tile each."""
    match rule:
        case "released":
            return [geometry.select_resolution((w, h), layout.candidates) for w, h in sizes]
        case "content":  # it may choose any
            return [min(layout.candidates, key=layout.tokens)] * len(sizes)
        case _:
            return [layout.one_tile] * len(sizes)


def _check_tokens(canvases: Sequence[Resolution], layout: TileLayout, context: int) -> None:
    """Refuse pictures that cannot fit."""
    tokens = sum(map(layout.tokens, canvases))
    if tokens >= context:
        raise ApiError(
            400,
            "context_length_exceeded",
            f"the pictures take {tokens:,} tokens and the context has {context:,}: send fewer or "
            'smaller pictures, or set "max_tiles" or "tiling": "content"',
        )


def _fewer_tiles(layout: TileLayout, most: int | None) -> TileLayout:
    """The layout without canvases of more tiles."""
    if most is None:
        return layout
    few = tuple(c for c in layout.candidates if layout.grid(c).local_tiles <= most)
    return replace(layout, candidates=few or (layout.one_tile,))


async def _all(work: Sequence[Coroutine[Any, Any, Cut]]) -> list[Cut]:
    """The results of all, or the first error once all have ended; memories are freed then."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        await asyncio.wait(tasks)
        return [task.result() for task in tasks]
    except BaseException:  # nobody waits any longer, or one of them failed
        for task in tasks:
            task.cancel()
        done = await asyncio.gather(*tasks, return_exceptions=True)
        _close([one[1] for one in done if not isinstance(one, BaseException)])
        raise


def _close(memories: Sequence[int]) -> None:
    for memory in memories:
        os.close(memory)


async def _made(size: int, make: Callable[P, int], *args: P.args, **kwargs: P.kwargs) -> int:
    """Shared memory of so many bytes, freed when nobody waits for the thread that makes it."""
    making = asyncio.ensure_future(apart(size, make, *args, **kwargs))
    try:
        return await asyncio.shield(making)
    except asyncio.CancelledError:
        making.add_done_callback(_free)
        raise


def _free(making: asyncio.Future[int]) -> None:
    if not making.cancelled() and making.exception() is None:
        os.close(making.result())


def _joined(memories: Sequence[int]) -> int:
    """One memory of all, in order; the others are closed, and all when it cannot be made."""
    first, *rest = memories
    end = os.fstat(first).st_size
    try:
        for memory in rest:
            size, done = os.fstat(memory).st_size, 0
            while done < size:
                done += os.pwrite(first, os.pread(memory, 2**22, done), end + done)
            end += size
    except OSError:
        os.close(first)
        raise
    finally:
        _close(rest)
    return first
