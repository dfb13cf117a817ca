"""What the server costs beside its engine, and whether its memory stays.

    python bench/serve.py [--model nano] [--users 1 8 32] [--requests 64] [--tokens 48]
    python bench/serve.py --soak 10        # minutes, with 5 % poison
    python bench/serve.py --shapes 2000    # prompts of as many lengths

Each user asks one question after the other about pictures that nobody sent before, and streams the
answer. A row per number of users: requests and tokens per second, time to first text and time
between two pieces of text, and processor time by kind of process (`vl2` answers HTTP). In turns
with it, such requests go to an `AsyncEngine` in a process without a server; `overhead` is the share
of time that the server adds, of the middle rows, with the client on the same machine.

`--soak` sends a mix at 80 % of what 8 users reach, with 5 % that is unfit or leaves early;
`--shapes` sends prompts of many lengths. Both print the resident memory of all processes of the
server and how much it grew over the later half.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import io
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
from PIL import Image

OVERHEAD, GROWTH_MIB = 0.10, 32
QUESTION = "What is in the picture?"


@dataclass
class Times:
    """Seconds of many requests."""

    first: list[float] = field(default_factory=list)
    between: list[float] = field(default_factory=list)
    tokens: int = 0
    endings: Counter[str] = field(default_factory=Counter)

    def row(self, users: int, seconds: float) -> dict[str, Any]:
        """As it is printed, in milliseconds."""
        count = self.endings.total()
        return {
            "users": users,
            "requests_per_s": round(count / seconds, 2),
            "tokens_per_s": round(self.tokens / seconds, 1),
            **_percentiles("first_text_ms", self.first),
            **_percentiles("between_ms", self.between),
            "endings": dict(self.endings),
        }


def pictures(count: int, seed: int) -> list[str]:
    """Data URLs of small noisy pictures, all different."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (112, 112, 3), dtype=np.uint8)).save(file, "PNG")
        made.append(f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}")
    return made


def body(url: str, tokens: int, text: str = QUESTION) -> dict[str, Any]:
    """A request of a fixed number of tokens."""
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}]
    return {
        "model": "bench",
        "messages": [{"role": "user", "content": content}],
        "max_tokens": tokens,
        "min_tokens": tokens,
        "repetition_guard": False,
    }


async def pieces_of(client: httpx2.AsyncClient, request: dict[str, Any]) -> AsyncIterator[str]:
    """The pieces of text of a streamed answer."""
    async with client.stream(
        "POST", "/v1/chat/completions", json={**request, "stream": True}
    ) as answer:
        if answer.status_code != 200:
            told = str(answer.status_code)
            raise httpx2.HTTPStatusError(told, request=answer.request, response=answer)
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):
                event = json.loads(line[6:])
                for choice in event.get("choices", ()):
                    if choice["delta"].get("content"):
                        yield choice["delta"]["content"]


async def pieces_of_engine(answers: Any, request: dict[str, Any]) -> AsyncIterator[str]:
    """The same from an engine without a server."""
    import vl2  # noqa: PLC0415 - the server's side of this program needs no torch

    params = vl2.SamplingParams(max_tokens=request["max_tokens"], min_tokens=request["min_tokens"])
    async for update in answers.stream(request["messages"], params):
        if update.delta:
            yield update.delta


async def timed(pieces: AsyncIterator[str], times: Times, tokens: int) -> None:
    """Listen to one answer."""
    begun, last = time.perf_counter(), None
    async for _ in pieces:
        now = time.perf_counter()
        if last is None:
            times.first.append(now - begun)
        else:
            times.between.append(now - last)
        last = now
    times.tokens += tokens
    times.endings["answered"] += 1


async def load(make: Any, users: int, requests: list[dict[str, Any]]) -> dict[str, Any]:
    """So many users, each with one request at a time, until all are answered."""
    times, waiting = Times(), iter(requests)

    async def user() -> None:
        for request in waiting:
            await timed(make(request), times, request["max_tokens"])

    begun = time.perf_counter()
    await asyncio.gather(*(user() for _ in range(users)))
    return times.row(users, time.perf_counter() - begun)


@contextlib.contextmanager
def serving(model: str) -> Iterator[tuple[str, int]]:
    """A server's address and process, until the block ends."""
    command = [sys.executable, "-m", "vl2", "serve", model, "--port", "0", "--name", "bench"]
    with subprocess.Popen(
        [*command, "limits.max_waiting=256"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            address = process.stdout.readline().strip()
            if not address:
                raise SystemExit("the server did not start: run vl2 serve to see why")
            yield address, process.pid
        finally:
            process.send_signal(signal.SIGTERM)


def family(process: int) -> Iterator[Path]:
    """Folders in /proc of a process and of all that it started."""
    left = [process]
    while left:
        folder = Path("/proc") / str(left.pop())
        yield folder
        with contextlib.suppress(OSError):  # it has just ended
            for task in (folder / "task").iterdir():
                left += map(int, (task / "children").read_text().split())


def resident_mib(process: int) -> float:
    """Memory of a process and of all that it started."""
    pages = 0
    for folder in family(process):
        with contextlib.suppress(OSError):
            pages += int((folder / "statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)


def cpu_seconds(process: int) -> dict[str, float]:
    """Processor time of each kind of process of the server."""
    spent: dict[str, float] = {}
    for one in family(process):
        with contextlib.suppress(OSError):  # it has just ended
            fields = (one / "stat").read_text().rpartition(")")[2].split()
            module = (one / "cmdline").read_text().split("\0")[2].rpartition(".")[2]
            ticks = int(fields[11]) + int(fields[12])
            spent[module] = spent.get(module, 0.0) + ticks / os.sysconf("SC_CLK_TCK")
    return spent


async def by_users(arguments: argparse.Namespace) -> bool:
    """A row per number of users, for the server and for the engine alone, in turns."""
    good = True
    with serving(arguments.model) as (address, process), bare_engine(arguments.model) as ask_bare:
        async with httpx2.AsyncClient(base_url=address, timeout=600) as client:
            warm = [body(url, 8) for url in pictures(16, seed=1)]
            await load(lambda request: pieces_of(client, request), 8, warm)
            for users in arguments.users:
                told: dict[str, list[dict[str, Any]]] = {"server": [], "engine": []}
                for turn in range(arguments.turns):
                    work = (users, arguments.requests, arguments.tokens, 100 * users + turn)
                    asked = requests_of(*work)
                    before = Counter(cpu_seconds(process))
                    row = await load(lambda request: pieces_of(client, request), users, asked)
                    spent = Counter(cpu_seconds(process)) - before
                    row["cpu_s"] = {name: round(seconds, 2) for name, seconds in spent.items()}
                    told["server"].append(row)
                    told["engine"].append(ask_bare(work))
                for what, rows in told.items():
                    print(json.dumps({"what": what, **_middle(rows)}), flush=True)
                speeds = [_middle(told[what])["tokens_per_s"] for what in ("engine", "server")]
                overhead = round(speeds[0] / speeds[1] - 1, 3)
                print(json.dumps({"what": "overhead", "users": users, "overhead": overhead}))
                good &= users != 8 or overhead <= OVERHEAD
    return good


def requests_of(users: int, count: int, tokens: int, seed: int) -> list[dict[str, Any]]:
    """Requests about pictures that nobody else asks about."""
    return [body(url, tokens) for url in pictures(count, seed)]


@contextlib.contextmanager
def bare_engine(model: str) -> Iterator[Callable[[tuple[int, ...]], dict[str, Any]]]:
    """A process with the engine alone; what is given takes work and returns its row."""
    command = [sys.executable, str(Path(__file__)), "--bare", "--model", model]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        given, answered = process.stdin, process.stdout

        def ask(work: tuple[int, ...]) -> dict[str, Any]:
            print(json.dumps(work), file=given, flush=True)
            return json.loads(answered.readline())

        answered.readline()  # it is warm
        yield ask
        given.close()


async def bare(arguments: argparse.Namespace) -> None:
    """Rows of the engine alone, for each line of work that comes in."""
    import vl2  # noqa: PLC0415
    from vl2.engine.loading import load_engine  # noqa: PLC0415

    async with vl2.AsyncEngine(load_engine(arguments.model)) as answers:
        warm = [body(url, 8) for url in pictures(16, seed=1)]
        await load(lambda request: pieces_of_engine(answers, request), 8, warm)
        print("warm", flush=True)
        for line in sys.stdin:
            users, *work = json.loads(line)
            asked, begun = requests_of(users, *work), time.process_time()
            row = await load(lambda request: pieces_of_engine(answers, request), users, asked)
            row["cpu_s"] = {"engine": round(time.process_time() - begun, 2)}
            print(json.dumps(row), flush=True)


def _middle(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The row of middle speed."""
    return sorted(rows, key=lambda row: row["tokens_per_s"])[len(rows) // 2]


POISON = (
    ("unfit picture", {"messages": [{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]}]}),
    ("unknown field", {"tilling": "content"}),
    ("too long", {"messages": [{"role": "user", "content": "word " * 5000}]}),
    ("leaves", {}),
)  # fmt: skip


async def soak(arguments: argparse.Namespace) -> bool:
    """A mix at 80 % of what eight users reach, for minutes; memory every ten seconds."""
    rng, memory, endings = random.Random(0), [], Counter[str]()
    with serving(arguments.model) as (address, process):
        async with httpx2.AsyncClient(base_url=address, timeout=600) as client:
            asked = [body(url, arguments.tokens) for url in pictures(64, seed=8)]
            rate = (await load(lambda r: pieces_of(client, r), 8, asked))["requests_per_s"] * 0.8

            async def one(number: int) -> None:
                [url] = pictures(1, seed=1000 + number)
                request, how = body(url, rng.choice([4, 16, arguments.tokens])), "answered"
                if rng.random() < 0.05:
                    how, change = rng.choice(POISON)
                    request |= change
                try:
                    async for _ in pieces_of(client, request):
                        if how == "leaves":
                            break
                except httpx2.HTTPStatusError as error:
                    how = f"{how}: {error}"
                endings[how] += 1

            begun, number, tasks = time.monotonic(), 0, set()
            while time.monotonic() - begun < 60 * arguments.soak:
                task = asyncio.create_task(one(number))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                number += 1
                if time.monotonic() - begun > 10 * len(memory):
                    memory.append(resident_mib(process))
                await asyncio.sleep(rng.expovariate(rate))
            await asyncio.gather(*tasks)
            told = (await client.get("/metrics")).text
    growth = _growth(memory)
    lost = re.search(r"^vl2_inflight (\S+)$", told, re.M)
    five = {name: n for name, n in endings.items() if re.search(r": 5\d\d$", name)}
    row = {
        "what": "soak",
        "minutes": arguments.soak,
        "requests": number,
        "endings": dict(endings),
        "inflight": float(lost[1]) if lost else None,
        "resident_mib": memory[:: max(1, len(memory) // 12)],
        "growth_mib_of_later_half": growth,
        "flat": growth <= GROWTH_MIB,
    }
    print(json.dumps(row))
    return row["flat"] and not five and row["inflight"] == 0


async def shapes(arguments: argparse.Namespace) -> bool:
    """Prompts of as many lengths as the context allows, again and again."""
    memory, rng = [], random.Random(0)
    with serving(arguments.model) as (address, process):
        async with httpx2.AsyncClient(base_url=address, timeout=600) as client:
            context = (await client.get("/v1/models")).json()["data"][0]["max_model_len"]
            for number in range(arguments.shapes):
                words = "x" * rng.randint(1, context // 2)
                [url] = pictures(1, seed=number)
                async for _ in pieces_of(client, body(url, 2, words)):
                    pass
                if number % max(1, arguments.shapes // 40) == 0:
                    memory.append(resident_mib(process))
    growth = _growth(memory)
    row = {
        "what": "shapes",
        "prompts": arguments.shapes,
        "resident_mib": memory[:: max(1, len(memory) // 12)],
        "growth_mib_of_later_half": growth,
        "flat": growth <= GROWTH_MIB,
    }
    print(json.dumps(row))
    return row["flat"]


def _growth(memory: list[float]) -> float:
    """From the middle to the end, each as the median of a few readings."""
    middle = len(memory) // 2
    few = max(1, len(memory) // 10)
    return round(
        statistics.median(memory[-few:]) - statistics.median(memory[middle : middle + few]), 1
    )


def _percentiles(name: str, seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    if not ordered:
        return {}
    return {
        f"{name}_p{percent}": round(1000 * ordered[int(percent / 100 * (len(ordered) - 1))], 2)
        for percent in (50, 95)
    }


def main() -> int:
    """Measure what is asked for; 0 if it is within its bounds."""
    parser = argparse.ArgumentParser(description="Measure the server.")
    parser.add_argument("--model", default="nano")
    parser.add_argument("--users", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--requests", type=int, default=64, help="for each number of users")
    parser.add_argument("--tokens", type=int, default=48, help="of each answer")
    parser.add_argument("--turns", type=int, default=3, help="of server and engine")
    parser.add_argument("--soak", type=float, metavar="MINUTES")
    parser.add_argument("--shapes", type=int, metavar="PROMPTS")
    parser.add_argument("--bare", action="store_true", help="the engine alone")
    arguments = parser.parse_args()
    if arguments.bare:
        asyncio.run(bare(arguments))
        return 0
    if arguments.soak:
        return not asyncio.run(soak(arguments))
    if arguments.shapes:
        return not asyncio.run(shapes(arguments))
    return not asyncio.run(by_users(arguments))


if __name__ == "__main__":
    sys.exit(main())
