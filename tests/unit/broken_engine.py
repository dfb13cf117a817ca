"""An engine's process that does what the prompts tell it, for the tests of the server's side."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from vl2.serve.wire import Link, Message, inherited_link

READY = {
    "context": 64,
    "max_num_seqs": 2,
    "tiling": "released",
    "max_tiled_images": 2,
    "single_questions": False,
    "adapters": [],
}


def main() -> None:
    """An engine that does what the prompts tell it."""
    link = inherited_link(sys.argv[1])
    start, _ = link.receive()
    lives = Path(start["folder"])
    life = len(list(lives.iterdir()))
    (lives / str(life)).touch()
    if life in start["failing"]:
        link.send({"kind": "failed", "error": "no such model"})
        os._exit(0)
    link.send({"kind": "ready", **READY, **start["facts"]})
    while True:
        message, descriptors = link.receive()
        for descriptor in descriptors:
            os.close(descriptor)
        obey(link, message, life)


def obey(link: Link, message: Message, life: int) -> None:
    """What a prompt says, or an answer."""
    number = message["id"]
    match message.get("prompt"):
        case "die":
            os._exit(3)
        case "die once" if life == 0:
            os._exit(3)
        case "begin":
            tell(link, {"id": number, "answer": 0, "delta": "a"})
        case "speak nonsense":
            tell(link, {"tokens": []})
        case "speak nonsense once" if life == 0:
            tell(link, {"tokens": []})
        case "send no message":
            link._frames.send_bytes(b"[1, 2")
        case "be silent" | None:
            pass
        case _:
            tell(link, {"id": number, "tokens": [life]})


def tell(link: Link, news: Message) -> None:
    """Send news."""
    link.send({"kind": "news", "news": [news]})


if __name__ == "__main__":
    main()
