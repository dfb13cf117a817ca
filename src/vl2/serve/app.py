"""The routes, and the application that they make."""

from __future__ import annotations

import hashlib
from base64 import b64encode
from contextlib import closing
from functools import cache, partial
from importlib.resources import files
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp

from vl2 import __version__
from vl2.logs import get_logger
from vl2.serve import schema
from vl2.serve.admission import Rates
from vl2.serve.apart import apart
from vl2.serve.body import read_request
from vl2.serve.chat import Service, answer, told, within
from vl2.serve.errors import CLIENT_LEFT, ApiError, refused, server_error
from vl2.serve.guard import Guard
from vl2.serve.media import Pictures
from vl2.serve.prompt import check_length, plan_chat, source_of
from vl2.serve.wire import Message

log = get_logger(__name__)

WEB = files("vl2.serve") / "web"
TYPES = {
    "css": "text/css; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "json": "application/json",
    "png": "image/png",
    "svg": "image/svg+xml",
}
"""Of the page's files; no other is served."""


def build(service: Service) -> ASGIApp:
    """The application of a running server."""
    app = FastAPI(
        title="vl2", version=__version__, docs_url=None, redoc_url=None, redirect_slashes=False
    )
    app.add_exception_handler(ApiError, _refused)
    app.add_exception_handler(HTTPException, _unknown)
    app.add_exception_handler(ClientDisconnect, _left)
    app.add_exception_handler(Exception, _failed)
    _add_model_routes(app, service)
    _add_page_routes(app, service)
    _add_watch_routes(app, service)
    app.openapi = cache(partial(_document, app))
    rates = Rates(service.config.limits.requests_per_minute)
    return Guard(app, service.config, rates, service.metrics)


def _add_model_routes(app: FastAPI, service: Service) -> None:
    """OpenAI's routes."""

    @app.post("/v1/chat/completions", openapi_extra=_takes(schema.ChatRequest))
    async def chat(request: Request) -> Response:
        """Answer a conversation about pictures."""
        return await answer(service, request, schema.ChatRequest)

    @app.post("/v1/completions", openapi_extra=_takes(schema.CompletionRequest))
    async def complete(request: Request) -> Response:
        """Continue a raw prompt, whose control strings are obeyed."""
        if not request.state.trusted:
            raise ApiError(
                403,
                "forbidden",
                "this key may not send raw prompts: use one that the server was started with as "
                "--trusted-api-key, or /v1/chat/completions",
            )
        return await answer(service, request, schema.CompletionRequest)

    @app.post("/tokenize", openapi_extra=_takes(schema.TokenizeRequest))
    async def tokenize(request: Request) -> Response:
        """Ids of a text, or of a conversation as the model gets it."""
        with closing(service.enter()):
            limits = service.config.limits
            asked, size = await read_request(request, schema.TokenizeRequest, limits)
            if asked.model is not None:
                service.check_model(asked.model)
            ids = await _ids(service, asked, size)
        return JSONResponse(
            {"tokens": ids, "count": len(ids), "max_model_len": service.facts.context}
        )

    @app.get("/v1/models")
    async def models() -> Response:
        """The models that are served: the base, then its adapters."""
        names = [None, *service.facts.adapters]
        listed = [_model(service, name) for name in names]
        return JSONResponse({"object": "list", "data": listed})

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        """One of them."""
        return JSONResponse(_model(service, service.check_model(name)))


def _add_page_routes(app: FastAPI, service: Service) -> None:
    """The page, and what it asks for beside answers."""

    @app.post("/v1/layout", openapi_extra=_takes(schema.LayoutRequest))
    async def layout(request: Request) -> Response:
        """How both rules would cut a picture; nothing is answered."""
        limits = service.config.limits
        with closing(service.enter()):
            asked, size = await read_request(request, schema.LayoutRequest, limits)
            url = asked.image_url.url
            source = await apart(size, source_of, url, "image_url.url", limits)
            cut = service.media.layouts(source, service.facts, asked.pictures)
            return JSONResponse(await within(limits.request_timeout, cut))

    @app.post("/v1/pages", openapi_extra=_takes(schema.PagesRequest))
    async def pages(request: Request) -> Response:
        """Pages of a PDF as PNG data URLs."""
        limits = service.config.limits
        with closing(service.enter()):
            asked, size = await read_request(request, schema.PagesRequest, limits)
            file = asked.file
            if file.dpi > limits.max_dpi:
                told = f"file.dpi is {file.dpi}: expected at most {limits.max_dpi:g}"
                raise refused("file.dpi", told)
            where = "file.file_data"
            source = await apart(size, source_of, file.file_data, where, limits, file)
            found, drawn = await within(limits.request_timeout, service.media.pages(source))
        listed = [
            {"page": page, "width": wide, "height": high, "url": _data_url(png)}
            for page, (wide, high), png in zip(found["pages"], found["sizes"], drawn, strict=True)
        ]
        return JSONResponse({"count": found["count"], "pages": listed})

    @app.get("/", include_in_schema=False)
    async def page(request: Request) -> Response:
        """The page."""
        return _file(request, "index.html")

    @app.get("/web/{name:path}", include_in_schema=False)
    async def file(request: Request, name: str) -> Response:
        """A file of the page."""
        return _file(request, name)


def _add_watch_routes(app: FastAPI, service: Service) -> None:
    """What probes and Prometheus ask for."""

    @app.get("/health/live")
    async def live() -> Response:
        """Whether this process answers."""
        return JSONResponse({"status": "live"})

    @app.get("/health/ready")
    async def ready() -> Response:
        """Whether a request would be answered now."""
        why = service.engine.ready(service.config.limits.stall_seconds)
        return JSONResponse({"status": why or "ready"}, 503 if why else 200)

    for path, asked in (("/health/live", live), ("/health/ready", ready)):
        app.add_api_route(path, asked, methods=["HEAD"], include_in_schema=False)

    @app.get("/metrics")
    async def metrics() -> Response:
        """Metrics in Prometheus' format."""
        text = service.metrics.text(
            service.engine.beat,
            up=service.engine.ready(service.config.limits.stall_seconds) is None,
            restarts=service.engine.restarts,
            worker_restarts=service.media.workers.restarts,
        )
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


async def _ids(service: Service, asked: schema.TokenizeRequest, size: int) -> list[int]:
    """Ids of a request of so many bytes."""
    limits, context = service.config.limits, service.facts.context
    message: Message = {
        "kind": "tokenize",
        "prompt": asked.prompt,
        "messages": [],
        "views": [],
        "timeout": limits.request_timeout,
    }
    pictures = Pictures(views=[], counts=[], pages=[], memory=None)
    if (asked.prompt is None) == (asked.messages is None):
        raise refused("prompt", "prompt and messages: expected exactly one of them")
    if asked.prompt is not None:
        check_length([asked.prompt], context, "prompt")
    if asked.messages is not None:
        request = schema.ChatRequest(model=service.model, messages=asked.messages)
        plan = await apart(size, plan_chat, request, limits, context)
        cut = service.media.gather(plan, service.facts)
        pictures = await within(limits.request_timeout, cut)
        message |= {"messages": told(plan, pictures), "views": pictures.views}
    ids: list[int] = []
    async for news in service.engine.request(message, pictures.memory):
        ids = news["tokens"]
    return ids


def _model(service: Service, adapter: str | None) -> Message:
    facts = service.facts
    return {
        "id": service.model if adapter is None else f"{service.model}:{adapter}",
        "parent": None if adapter is None else service.model,
        "object": "model",
        "created": 0,
        "owned_by": "vl2",
        "max_model_len": facts.context,
        "tiling": facts.tiling,
        "tile_size": facts.layout.image_size,
        "max_tiled_images": facts.max_tiled_images,
        "single_questions": facts.single_questions,
    }


def _file(request: Request, name: str) -> Response:
    """A file of the page by its name, which is looked up in the list of files that there are."""
    data = _page_files().get(name)
    if data is None:
        raise HTTPException(404)
    tag = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
    headers = {"etag": tag, "cache-control": "no-cache"}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(data, media_type=TYPES[name.rpartition(".")[2]], headers=headers)


@cache
def _page_files() -> dict[str, bytes]:
    """Every file of the page by its path below it."""
    found: dict[str, bytes] = {}
    folders = [("", WEB)]
    while folders:
        before, folder = folders.pop()
        for entry in folder.iterdir():
            if entry.is_dir():
                folders.append((f"{before}{entry.name}/", entry))
            elif entry.name.rpartition(".")[2] in TYPES:
                found[before + entry.name] = entry.read_bytes()
    return found


def _data_url(png: bytes) -> str:
    return f"data:image/png;base64,{b64encode(png).decode()}"


def _takes(kind: type[schema.Strict]) -> dict[str, Any]:
    """What the OpenAPI document says of a route's body."""
    body = {"$ref": f"#/components/schemas/{kind.__name__}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": body}}}}


def _document(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document with the schemas of all bodies."""
    kinds = (schema.ChatRequest, schema.CompletionRequest, schema.TokenizeRequest)
    kinds += (schema.LayoutRequest, schema.PagesRequest)
    _, found = models_json_schema(
        [(kind, "validation") for kind in kinds],
        ref_template="#/components/schemas/{model}",
    )
    document = get_openapi(title=app.title, version=app.version, routes=app.routes)
    document.setdefault("components", {}).setdefault("schemas", {}).update(found["$defs"])
    return document


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response


async def _unknown(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another method")
        told = f"{request.method:.20} is not allowed here: use {allowed}"
        return ApiError(405, "method_not_allowed", told).response
    return ApiError(404, "not_found", "no such address: see /openapi.json").response


async def _left(request: Request, error: Exception) -> Response:
    return Response(status_code=CLIENT_LEFT)


async def _failed(request: Request, error: Exception) -> Response:
    """A mistake of ours; the log has it under the request's number."""
    log.error("request %s failed", request.state.request_id, exc_info=error)
    return server_error().response
