"""An engine's process that does what the prompts tell it, for the tests of the server's side."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from vl2.serve.wire import inherited_link

READY = {
    "context": 64,
    "max_num_seqs": 2,
    "tiling": "released",
    "max_tiled_images": 2,
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
        match message.get("prompt"):
            case "die":
                os._exit(3)
            case "die once" if life == 0:
                os._exit(3)
            case "begin":
                told = {"id": message["id"], "answer": 0, "delta": "a"}
                link.send({"kind": "news", "news": [told]})
                os._exit(3)
            case "be silent" | None:
                continue
        link.send({"kind": "news", "news": [{"id": message["id"], "tokens": [life]}]})


if __name__ == "__main__":
    main()
