"""A process that decodes pictures and PDF pages for the server, within limits of the system.

It answers one job at a time over its link, and ends when the link does. What a decoder does to it,
a crash, an endless loop or a gigabyte, costs that job and this process.
"""

from __future__ import annotations

import io
import os
import resource
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from PIL import Image

from vl2.processing.image_error import ImageError
from vl2.processing.image_gate import MESSAGES, Admitted, ImagePolicy, admit, probe
from vl2.processing.layout import TileLayout
from vl2.processing.pdf_error import PdfError
from vl2.processing.pdf_gate import Pdf, PdfPolicy
from vl2.processing.tiling import choose_canvas, views_of
from vl2.serve.wire import Message, from_memory, inherited_link, to_memory

Answer = tuple[Message, list[int]]


def main() -> None:
    """Serve jobs until the other end goes."""
    seconds, memory = int(sys.argv[2]), int(sys.argv[3])
    os.nice(5)  # refusals and running answers come before new pictures
    _set_limit(resource.RLIMIT_AS, memory)
    _set_limit(resource.RLIMIT_CORE, 0)
    _set_limit(resource.RLIMIT_NOFILE, 64)
    for ignored in (signal.SIGINT, signal.SIGTERM):  # the server tells when to end
        signal.signal(ignored, signal.SIG_IGN)
    link = inherited_link(sys.argv[1])
    with suppress(EOFError, OSError):
        while True:
            job, descriptors = link.receive()
            link.send({"taken": True})  # from here on it is the job that kills
            used = resource.getrusage(resource.RUSAGE_SELF)
            _set_limit(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime) + seconds + 1)
            answer, made = _answer(job, descriptors)
            try:
                link.send(answer, made)
            finally:
                for descriptor in (*descriptors, *made):
                    os.close(descriptor)
    os._exit(0)


def _set_limit(which: int, most: int) -> None:
    """Lower a soft limit; the hard one stays, so that it can be moved again."""
    hard = resource.getrlimit(which)[1]
    resource.setrlimit(which, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def _answer(job: Message, descriptors: list[int]) -> Answer:
    """The result of a job, or the code of its refusal."""
    try:
        data = from_memory(descriptors[0], [job["bytes"]]).tobytes()
        return JOBS[job["job"]](job, data)
    except ImageError as error:
        return {"refused": "image", "code": error.code, "values": error.values}, []
    except PdfError as error:
        return {"refused": "pdf", "code": error.code, "values": error.values}, []
    except MemoryError:
        return {"refused": "image", "code": "no_memory", "values": {}}, []


def _size(job: Message, data: bytes) -> Answer:
    """(width, height) as a picture will be decoded, by its header."""
    return {"size": probe(data, _policy(job))}, []


def _views(job: Message, data: bytes) -> Answer:
    """A picture cut for the model."""
    return _cut(job, [admit(data, _policy(job))])


def _layout(job: Message, data: bytes) -> Answer:
    """How both rules cut a picture."""
    picture, layout = admit(data, _policy(job)), _layout_of(job)
    rules = {}
    for rule in ("released", "content"):
        canvas = choose_canvas(picture.image, layout, rule)
        canvas = layout.one_tile if job["whole"] else canvas
        grid = layout.grid(canvas)
        rules[rule] = {
            "tiles_wide": grid.wide,
            "tiles_high": grid.high,
            "read_width": canvas[0],
            "read_height": canvas[1],
            "tokens": layout.tokens(canvas),
        }
    return {"size": picture.sent, "notes": picture.notes, "layouts": rules}, []


def _pages(job: Message, data: bytes) -> Answer:
    """Numbers and sizes of chosen pages of a PDF; with "as", the pages as views or PNG files."""
    policy = PdfPolicy(max_pages=job["max_pages"], max_pixels=job["max_pixels"])
    with Pdf(data, policy) as pdf:
        numbers = pdf.pages(job["pages"])
        sizes = [pdf.view(number, job["dpi"]).size for number in numbers]
        told = {"pages": numbers, "count": len(pdf), "sizes": sizes}
        if job["as"] is None:
            return told, []
        pictures = (pdf.render(number, job["dpi"]) for number in numbers)
        if job["as"] == "png":
            files = [_png(picture) for picture in pictures]
            return {**told, "lengths": list(map(len, files))}, [to_memory(b"".join(files))]
        admitted = [Admitted(image=picture, sent=picture.size) for picture in pictures]
    cut, made = _cut(job, admitted)
    return {**told, **cut}, made


def _cut(job: Message, pictures: list[Admitted]) -> Answer:
    """Views of pictures, their tiles in one memory."""
    layout = _layout_of(job)
    views = [views_of(p, layout, job["tiling"], whole=job["whole"]) for p in pictures]
    told = [
        {"shape": v.tiles.shape, "canvas": v.canvas, "sent": v.sent, "notes": v.notes}
        for v in views
    ]
    return {"views": told}, [to_memory(b"".join(v.tiles.tobytes() for v in views))]


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=1)
    return file.getvalue()


def _policy(job: Message) -> ImagePolicy:
    return replace(MESSAGES, max_pixels=job["max_pixels"])


def _layout_of(job: Message) -> TileLayout:
    fields = dict(job["layout"])
    return TileLayout(
        candidates=tuple(map(tuple, fields.pop("candidates"))),
        mean=tuple(fields.pop("mean")),
        std=tuple(fields.pop("std")),
        **fields,
    )


JOBS: dict[str, Callable[[Message, bytes], Answer]] = {
    "size": _size,
    "views": _views,
    "layout": _layout,
    "pages": _pages,
}


if __name__ == "__main__":
    main()
