"""A server from start to end: load, listen, drain on the first signal, stop on the second."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import os
import signal
import socket
from collections.abc import Callable

import uvicorn
from sse_starlette.sse import AppStatus

from vl2.logs import get_logger
from vl2.serve.admission import Gate
from vl2.serve.app import build
from vl2.serve.chat import Service
from vl2.serve.config import ServeConfig
from vl2.serve.connection import guarded, room
from vl2.serve.engine_client import EngineClient, EngineFailed, Facts
from vl2.serve.errors import shutting_down
from vl2.serve.fetch import fetcher
from vl2.serve.media import Media
from vl2.serve.metrics import Metrics
from vl2.serve.wire import Message
from vl2.serve.workers import Workers

log = get_logger(__name__)

BACKLOG = 2048
"""Connections that the system holds until they are accepted."""
LAST_WORDS = 1.0
"""Seconds for the error events of what a drain cuts off."""


def serve(model: str, config: ServeConfig, start: Message, on_ready: Callable[[str], None]) -> int:
    """Serve a model until a signal or the engine's end; returns the exit code.

    Args:
        model: the name by which requests call it.
        config: where to listen, to whom, within which limits.
        start: what the engine's process loads; see `engine_process.load`.
        on_ready: hears the server's address once it answers.

    Raises:
        ValueError: the model cannot be loaded, or the address cannot be listened at.
    """
    listener = _listener(config)
    with listener:
        return asyncio.run(_serve(model, config, start, listener, on_ready))


async def _serve(
    model: str,
    config: ServeConfig,
    start: Message,
    listener: socket.socket,
    on_ready: Callable[[str], None],
) -> int:
    engine, workers, limits = EngineClient(start), Workers(config.limits), config.limits
    stop = Stop()
    stop.listen()
    try:
        facts = await _started(engine, stop)
        if facts is None:
            return 0
        running = limits.max_running or facts.max_num_seqs
        waiting = 4 * running if limits.max_waiting is None else limits.max_waiting
        media = Media(
            workers=workers, fetcher=fetcher(config.image_hosts, limits.max_image), limits=limits
        )
        service = Service(
            model=model,
            config=config,
            engine=engine,
            media=media,
            gate=Gate(running, waiting),
            metrics=Metrics(),
        )
        server = _server(service)
        serving = asyncio.create_task(server.serve([listener]))
        while not (server.started or serving.done()):
            await asyncio.sleep(0.01)
        listener.listen(BACKLOG)  # by uvicorn only as many wait as asyncio accepts at once
        gc.collect()
        gc.freeze()  # what is here stays: each look through it would hold up everybody
        on_ready(_address(listener))
        stopped = asyncio.create_task(stop.asked.wait())
        died = asyncio.create_task(engine.gave_up.wait())
        await asyncio.wait((serving, stopped, died), return_when=asyncio.FIRST_COMPLETED)
        if stop.asked.is_set():
            await _drain(service)
        server.should_exit = True
        await serving
        return 1 if engine.gave_up.is_set() else 0
    finally:
        await engine.stop()
        workers.close()


class Stop:
    """SIGINT and SIGTERM: the first asks to stop, the second ends this process at once."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()

    def listen(self) -> None:
        """Hear signals from now on."""
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self._heard)

    def _heard(self) -> None:
        if self.asked.is_set():
            os._exit(1)  # the other processes end with their links
        log.info("stopping: no new requests; a second signal stops at once")
        self.asked.set()


async def _started(engine: EngineClient, stop: Stop) -> Facts | None:
    """The facts of the loaded model; None if a signal came first."""
    loading = asyncio.create_task(engine.start())
    stopped = asyncio.create_task(stop.asked.wait())
    await asyncio.wait((loading, stopped), return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if not loading.done():
        loading.cancel()
        return None
    try:
        return loading.result()
    except EngineFailed as error:
        raise ValueError(str(error)) from None


async def _drain(service: Service) -> None:
    """Wait for what was begun, then tell the rest that it is cut off."""
    service.engine.draining = True
    if not await _emptied(service, service.config.limits.drain_timeout):
        service.engine.end_all(shutting_down())
        await _emptied(service, LAST_WORDS)


async def _emptied(service: Service, seconds: float) -> bool:
    """Wait at most so long for the end of every request; returns whether it came."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while service.gate.taken and loop.time() < deadline:
        await asyncio.sleep(0.02)
    return not service.gate.taken


def _server(service: Service) -> uvicorn.Server:
    AppStatus.disable_automatic_graceful_drain()  # it would cut streams off at the first signal
    limits = service.config.limits
    most, at_once = room(service.gate.places, limits)
    server = uvicorn.Server(
        uvicorn.Config(
            build(service),
            http=guarded(limits, most),
            backlog=at_once,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            h11_max_incomplete_event_size=2 * limits.header_bytes,
            timeout_graceful_shutdown=1,
        )
    )
    # It would raise the signal again at the end, which is then no exit with 0.
    server.capture_signals = contextlib.nullcontext  # pyright: ignore[reportAttributeAccessIssue]
    return server


def _listener(config: ServeConfig) -> socket.socket:
    """A listening socket.

    Raises:
        ValueError: the address is taken, or none of this machine's.
    """
    try:
        family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
        return socket.create_server(
            (config.host.strip("[]"), config.port), family=family, backlog=BACKLOG
        )
    except (OSError, OverflowError) as error:
        why = {
            errno.EADDRINUSE: "is taken: choose another --port",
            errno.EACCES: "may not be listened at by this user: choose a --port of 1024 or more",
        }.get(
            getattr(error, "errno", 0),
            "cannot be listened at: give an address of this machine with --host",
        )
        raise ValueError(f"{config.host}:{config.port} {why}") from None


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
