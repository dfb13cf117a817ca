"""Many requests at once, some taken back: everything ends, blocks return, memory stays.

    python bench/load.py [--model nano] [--requests 200] [--rounds 10] [--seed 0]

Each round sends the requests to one engine through asyncio: questions about drawn pictures of
several sizes and text alone, short and long answers, greedy and sampled, a third about a picture
that came before, a few too long for the context. A quarter of the listeners leave at a random
moment and some have a deadline. Prints one JSON line per round with how the requests ended, the
free cache blocks before and after and the resident memory, and a last line with the growth of
memory over the later half of the rounds: caches and the allocator fill in the earlier one.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import ctypes
import gc
import json
import platform
import random
import sys
import time

import numpy as np
import torch

import vl2
from vl2.benchmarks.machine import resident_bytes
from vl2.data.source_synthetic import KINDS
from vl2.data.synthetic import ask, draw_scene

FREE_GROWTH_MIB = 32
"""Growth of memory over the later half of the rounds up to which it counts as flat."""


def conversations(rng: random.Random, count: int) -> list[list[dict]]:
    """Questions about pictures, some of them earlier ones; some without, some too long."""
    made = []
    pictures = []
    for _ in range(count):
        drawing = np.random.default_rng(rng.randrange(2**32))
        scene = draw_scene(drawing, recipe=KINDS["drills"].recipe)
        text = ask(scene, drawing)[0].text
        if rng.random() < 0.03:
            text = "word " * 5000
        content = [{"type": "text", "text": text}]
        if rng.random() < 0.8:
            wide, high = scene.image.size
            fresh = scene.image.resize((wide * rng.randint(1, 3), high * rng.randint(1, 3)))
            picture = rng.choice(pictures) if pictures and rng.random() < 0.33 else fresh
            pictures.append(picture)
            content.insert(0, {"type": "image", "image": picture})
        made.append([{"role": "user", "content": content}])
    return made


async def send(answers: vl2.AsyncEngine, talk: list[dict], rng: random.Random) -> str:
    """One request; says how it ended."""
    await asyncio.sleep(rng.random() * 2)
    params = vl2.SamplingParams(
        max_tokens=rng.choice([1, 8, 32, 96]),
        temperature=rng.choice([0.0, 1.0]),
        ignore_eos=rng.random() < 0.3,
    )
    leaves_after = rng.randint(0, 12) if rng.random() < 0.25 else None
    timeout = rng.random() * 3 if rng.random() < 0.1 else None
    ending = "left"
    try:
        stream = answers.stream(talk, params, timeout=timeout)
        async with contextlib.aclosing(stream) as updates:
            heard = 0
            async for update in updates:
                heard += 1
                if update.completion:
                    ending = update.completion.finish_reason
                elif leaves_after is not None and heard > leaves_after:
                    break
    except ValueError:
        ending = "refused"
    return ending


async def round_of(engine: vl2.Engine, requests: int, rng: random.Random) -> dict[str, int]:
    """Send them all and wait for the last; how many ended how."""
    async with vl2.AsyncEngine(engine) as answers:
        work = [
            send(answers, talk, random.Random(rng.random()))
            for talk in conversations(rng, requests)
        ]
        endings = await asyncio.gather(*work)
    return dict(collections.Counter(endings))


def resident_mib() -> float:
    """Memory of this process now, without what the C library holds back for reuse (glibc)."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return (resident_bytes(peak=False) or 0) / 2**20


def main() -> int:
    """Run the rounds and print; 0 if everything ended, returned and stayed."""
    parser = argparse.ArgumentParser(description="Load an engine and look what is left.")
    parser.add_argument("--model", default="nano")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    try:
        model = vl2.load_model(arguments.model, device="cpu")
    except ValueError as error:
        parser.error(str(error))
    config = vl2.EngineConfig(vision_cache_gib=0.01, num_blocks=1024, speculative_tokens=3)
    engine = vl2.Engine(model, vl2.Processor.from_pretrained(arguments.model), config)
    rng = random.Random(arguments.seed)
    free, memory, good = engine.blocks.free, [], True
    for number in range(arguments.rounds):
        start = time.perf_counter()
        endings = asyncio.run(round_of(engine, arguments.requests, rng))
        memory.append(resident_mib())
        row = {
            "round": number,
            "requests": arguments.requests,
            "endings": endings,
            "free_blocks_before": free,
            "free_blocks_after": engine.blocks.free,
            "unfinished": engine.has_unfinished_requests,
            "resident_mib": round(memory[-1], 1),
            "seconds": round(time.perf_counter() - start, 1),
        }
        print(json.dumps(row))
        ended = sum(endings.values()) == arguments.requests
        good &= ended and engine.blocks.free == free and not engine.has_unfinished_requests
    growth = memory[-1] - memory[(len(memory) - 1) // 2]
    summary = {
        "all_ended_and_returned": good,
        "growth_mib_of_later_half": round(growth, 1),
        "flat": growth <= FREE_GROWTH_MIB,
        "preemptions": engine.stats.preemptions,
        "cpu": platform.machine(),
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(summary))
    return 0 if good and summary["flat"] else 1


if __name__ == "__main__":
    sys.exit(main())
