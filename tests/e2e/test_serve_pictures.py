"""Pictures that are damaged, huge, or none at all; pictures of every size."""

from __future__ import annotations

import random
import socket
import threading
import time
import zlib
from base64 import b64encode, urlsafe_b64encode
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest
from PIL import Image
from tests.e2e.serving import Server, asks, data_url, image_part, png, serving
from tests.unit.hostile_urls import HOSTILE
from tests.unit.picture_files import photo, tiff, to_bytes
from tests.unit.picture_files import png as png_of

from vl2.model_folder import resolve
from vl2.processing.processor import Processor

MIB = 2**20
NAMES = ("localhost", "127.0.0.1")
CODES = ("image_url_not_allowed", "image_url_failed", "invalid_image")
FILES = [to_bytes(photo(), kind) for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")]
WHOLE = png(Image.new("RGB", (60, 40), (10, 120, 200)))


class Canary:
    """A port of this machine to which nobody may be led; it counts who comes."""

    def __init__(self) -> None:
        self.hits = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._count, daemon=True).start()

    def _count(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            self.hits += 1
            connection.close()


@pytest.fixture(scope="module")
def canary() -> Canary:
    return Canary()


@pytest.fixture(scope="module")
def server(canary: Canary) -> Iterator[Server]:
    """It may fetch from names of this machine, which no address check lets it do."""
    hosts = [*NAMES, *(f"{name}:{canary.port}" for name in NAMES)]
    words = [word for host in hosts for word in ("--image-host", host)]
    with serving("nano", "--name", "test", *words) as running:
        yield running
        running.check_log()
        assert running.metrics()["vl2_worker_restarts"] == 0


def test_no_address_leads_to_this_machine(server: Server, canary: Canary):
    socket.create_connection(("127.0.0.1", canary.port)).close()
    server.wait_for(lambda: canary.hits == 1)  # it counts
    own = [f"https://{name}:{canary.port}/a.png" for name in (*NAMES, "[::1]", "0", "127.1")]
    plain = [f"http://127.0.0.1:{canary.port}/", f"https://allowed@127.0.0.1:{canary.port}/"]
    for url in (*own, *plain, *HOSTILE):
        part = {"type": "image_url", "image_url": {"url": url}}
        answer = server.chat(asks(part, "Hi"), max_tokens=1)
        assert answer.status_code in (400, 422), url
        code = answer.json()["error"]["code"]
        assert code in CODES[: 1 if url in own else None], url
    assert canary.hits == 1


def layout(server: Server, url: str) -> httpx2.Response:
    """What decodes a picture, and asks the engine nothing."""
    return server.post("/v1/layout", {"image_url": {"url": url}})


def mutated(seed: int) -> bytes:
    draw = random.Random(seed)
    data = bytearray(draw.choice(FILES))
    match draw.randrange(4):
        case 0:
            del data[draw.randrange(len(data)) :]
        case 1:
            for _ in range(draw.choice([1, 3, 30])):
                data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        case 2:  # a number in the header that is large
            place = draw.randrange(min(64, len(data) - 4))
            data[place : place + 4] = draw.choice(
                [b"\xff" * 4, b"\0\0\xff\xff", b"\x7f\xff\xff\xff"]
            )
        case 3:
            place = draw.randrange(len(data))
            data[place : place + draw.randrange(99)] = draw.randbytes(draw.randrange(99))
    return bytes(data)


def test_damaged_pictures_are_refused_or_read(server: Server, full: bool):
    def ask(seed: int) -> int:
        part = {"type": "image_url", "image_url": {"url": data_url(mutated(seed))}}
        if seed % 8:
            return layout(server, part["image_url"]["url"]).status_code
        return server.chat(asks(part, "Hi"), max_tokens=1).status_code

    with ThreadPoolExecutor(2) as pool:
        found = Counter(pool.map(ask, range(1000 if full else 40)))
    assert set(found) <= {200, 400, 413, 415}
    assert found[200] > 0
    assert found[400] > 0


def bombs() -> dict[str, bytes]:
    line = zlib.compressobj(9)
    zeros = b"".join(line.compress(bytes(1673)) for _ in range(13377)) + line.flush()
    gif = bytearray(to_bytes(Image.new("P", (1, 1)), "GIF"))
    gif[6:10] = b"\xff" * 4
    bmp = to_bytes(Image.new("1", (8, 8)), "BMP")
    tile = {256: 8, 257: 8, 258: 8, 259: 1, 262: 1, 322: 65520, 323: 65520, 325: 1}
    return {
        "png": png_of(13377, 13377, zeros),
        "png of 2**31": png_of(2**31 - 1, 2**31 - 1, zlib.compress(b"")),
        "gif": bytes(gif),
        "bmp": bmp.replace(b"\x08\0\0\0" * 2, b"\xff\xff\xff\x7f" * 2),
        "tiff": tiff({256: 2**31 - 1, 257: 2**31 - 1, 258: 1, 259: 1, 262: 1, 279: 1}, b"\0", 273),
        "tile": tiff(tile, b"\0", 324),
        "jpeg": to_bytes(photo(), "JPEG").replace(b"\x00\x30\x00\x40", b"\xff\xff\xff\xff", 1),
    }  # fmt: skip


def test_bombs_are_refused_before_they_unfold(server: Server, full: bool):
    for _ in range(8):  # both workers have started, and read a picture
        assert layout(server, data_url(WHOLE)).status_code == 200
    before, times = server.memory(), []
    for name, data in bombs().items():
        begun = time.monotonic()
        answer = layout(server, data_url(data))
        times.append(time.monotonic() - begun)
        assert answer.status_code == 400, name
        assert answer.json()["error"]["code"] == "invalid_image"
    assert server.memory() - before < 8 * MIB
    assert sorted(times)[len(times) // 2] < (0.05 if full else 1)


def test_many_frames_cost_one(server: Server):
    frames = [Image.new("L", (64, 64), n % 256) for n in range(1000)]
    data = to_bytes(frames[0], "GIF", save_all=True, append_images=frames[1:])
    found = layout(server, data_url(data)).json()
    assert "only the first was used" in found["notes"][0]


NOT_PICTURES = {
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(id) run\n",
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "html": b"<html><script>alert(1)</script>",
    "pdf": b"%PDF-1.4\n1 0 obj",
    "j2k": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(99),
    "heic": b"\0\0\0\x18ftypheic" + bytes(99),
    "psd": b"8BPS\0\1" + bytes(99),
    "icns": b"icns" + bytes(99),
    "ico": to_bytes(photo(), "ICO"),
    "ppm": to_bytes(photo(), "PPM"),
    "tga": to_bytes(photo(), "TGA"),
    "pickle": b"\x80\x04\x95\x0f\0\0\0\0\0\0\0\x8c\x02os",
    "empty": b"",
    "text before": b" " + WHOLE,
    "zip": b"PK\3\4" + bytes(99),
}


@pytest.mark.parametrize("kind", NOT_PICTURES)
def test_other_files_are_not_opened(server: Server, kind: str):
    answer = layout(server, data_url(NOT_PICTURES[kind]))
    assert answer.status_code == 415
    assert answer.json()["error"]["code"] == "invalid_image"
    remedy = 'a part of type "file"' if kind == "pdf" else "use PNG, JPEG"
    assert remedy in answer.json()["error"]["message"]
    assert set(server.children().values()) <= {"vl2.serve.worker", "vl2.serve.engine_process"}


@pytest.mark.parametrize(
    "head", [b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"\xff\xd8\xff", b"II*\0"]
)
def test_files_that_only_begin_as_pictures_are_damaged(server: Server, head: bytes):
    for rest in (b"<script>alert(1)</script>", b"%PDF-1.4", b"/*" + bytes(500) + b"*/=1;alert(1)"):
        assert layout(server, data_url(head + rest)).status_code == 400


TEXT = b64encode(WHOLE).decode()
BAD_URLS = {
    "space": f"data:image/png;base64,{TEXT[:40]} {TEXT[40:]}",
    "line break": f"data:image/png;base64,{TEXT[:40]}\n{TEXT[40:]}",
    "space before": f"data:image/png;base64, {TEXT}",
    "no padding": data_url(WHOLE + b"x" * (-len(WHOLE) % 3 + 1)).rstrip("="),
    "url alphabet": "data:image/png;base64," + urlsafe_b64encode(b"\xfb\xff" + WHOLE).decode(),
    "percent": f"data:image/png;base64,{TEXT.replace('/', '%2F', 1)}%3D",
    "no base64": "data:image/png,%89PNG",
    "html": "data:text/html,<b>Hi</b>",
    "no comma": f"data:image/png;base64{TEXT}",
    "empty": "",
    "data": "data:",
    "letters": "data:image/png;base64,\u00e9\u00e9\u00e9\u00e9",
    "nul": f"data:image/png;base64,{TEXT}\0",
    "long head": f"data:image/png;{'a=b;' * 999}base64,{TEXT}",
    "many heads": "data:" + "data:" * 9999,
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD_URLS)
def test_bad_data_urls_are_refused(server: Server, kind: str):
    answer = layout(server, BAD_URLS[kind])
    assert answer.status_code == 400, answer.text
    assert len(answer.json()["error"]["message"]) < 400


def test_the_bytes_tell_the_type_whatever_the_url_says(server: Server):
    for kind in ("text/html", "image/svg+xml", "application/octet-stream", "IMAGE/PNG"):
        assert layout(server, data_url(WHOLE, kind)).status_code == 200


ODD = [(1, 1), (1, 500), (500, 1), (1, 768), (1, 10_000), (65_535, 1), (2, 65_000), (383, 385)]


def test_pictures_of_any_size_take_the_tokens_that_are_told(server: Server, full: bool):
    """The prompt of the server is the processor's own, to the id."""
    processor = Processor.from_pretrained(resolve("nano"))
    draw = random.Random(0)
    sizes = [(draw.randrange(1, 1200), draw.randrange(1, 1200)) for _ in range(52)]
    if full:
        sizes += [
            (int(2 ** draw.uniform(0, 12)), int(2 ** draw.uniform(0, 12))) for _ in range(9940)
        ]

    def ask(size: tuple[int, int]) -> None:
        image = Image.new("RGB", size, (size[0] % 256, size[1] % 256, 77))
        message = asks(image_part(image), "Hi")
        answer = server.chat(message, max_tokens=1)
        told: Any = answer.json()
        if answer.status_code == 400 and told["error"]["code"] == "invalid_image":
            assert "thinner than one pixel" in told["error"]["message"], size
            return
        assert answer.status_code == 200, (size, answer.text)
        parts = [{"type": "image", "image": image}, {"type": "text", "text": "Hi"}]
        inputs = processor([{"role": "user", "content": parts}])
        ids = inputs.input_ids.tolist()
        count = ids.count(processor.tokenizer.image_id)
        [read] = told["usage"]["images"]
        assert (read["width"], read["height"]) == size
        assert read["tokens"] == count == told["usage"]["prompt_tokens_details"]["image_tokens"]
        assert server.post("/tokenize", {"messages": [message]}).json()["tokens"] == ids

    with ThreadPoolExecutor(2) as pool:
        assert len(list(pool.map(ask, [*ODD, *sizes]))) >= 60
