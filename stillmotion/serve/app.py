"""The service over HTTP."""

import asyncio
import hmac
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stillmotion import __version__
from stillmotion.serve.answers import Answer, Model, Problem
from stillmotion.serve.refused import Refused
from stillmotion.serve.service import Asked, Service
from stillmotion.serve.upload import FIELD, received

LINGER_SECONDS = 2.0
"""For which the rest of a refused upload is taken and thrown away, so that the client reads why."""
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "img-src data: blob:; media-src blob: mediastream:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
ERRORS = {
    400: "The form cannot be read, or has no file.",
    401: "The API key is missing or wrong.",
    408: "The upload came too slowly.",
    413: "The file is too large, or the video too long.",
    415: "It is no form, or the file is neither a video nor a still that is taken.",
    422: "The file cannot be decoded; or a parameter is wrong.",
    429: "Too many requests at once; `Retry-After` says when to come again.",
    500: "The service failed.",
    503: "Not ready.",
    504: "No answer in time.",
    507: "No room to store the upload.",
}
FORM = {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": {
    "type": "object", "required": [FIELD],
    "properties": {FIELD: {"type": "string", "format": "binary", "description": "a video or a still"}}}}}}}  # fmt: skip


def make_app(service: Service, folder: Path, *, api_key: str | None = None, cors: Sequence[str] = ()) -> FastAPI:
    """The application.

    Args:
        service: Answers; it is started and closed with the application.
        folder: Where uploads lie while they are worked on.
        api_key: Wanted of who asks for anything but the page, `/health` and `/ready`; None: of nobody.
        cors: Origins whose pages may read answers (`*`: all).
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await service.start()
        try:
            yield
        finally:
            service.close()

    # FastAPI's own pages about the API would load scripts from another host.
    app = FastAPI(title="stillmotion", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan,
                  summary="What a trained student says of videos and stills.")  # fmt: skip
    app.add_middleware(_Counting, service=service)
    if cors:
        app.add_middleware(CORSMiddleware, allow_origins=list(cors), allow_methods=["GET", "POST"],
                           allow_headers=["Authorization", "X-API-Key"], expose_headers=["Retry-After"])  # fmt: skip
    app.add_exception_handler(Refused, _refuse)
    app.add_exception_handler(RequestValidationError, _refuse_parameter)
    _add_routes(app, service, folder, [Depends(_key_check(api_key))] if api_key else [])
    return app


def _add_routes(app: FastAPI, service: Service, folder: Path, checks: list[Any]) -> None:
    limits = service.limits

    @app.post("/predict", response_model=Answer, responses=_errors(400, 401, 408, 413, 415, 422, 429, 500, 504, 507),
              openapi_extra=FORM, dependencies=checks)  # fmt: skip
    async def predict(
        request: Request,
        timeline: Annotated[int, Query(ge=0, le=100, description="parts of the video to predict one by one")] = 0,
        pictures: Annotated[int, Query(ge=0, le=16, description="frames looked at to send back, at most")] = 0,
        heat: Annotated[bool, Query(description="Grad-CAM over these frames")] = False,
        teacher: Annotated[bool, Query(description="ask the teacher, too, if there is one")] = True,
    ) -> Response:
        """Says what a video or a still shows."""
        if service.stopping or service.open >= limits.requests:
            raise Refused(429, f"{limits.requests} requests are worked on already; send it again later", retry_after=1)
        with service.taken():
            async with received(request, folder, limits) as upload:
                service.counters.uploaded.inc(upload.size)
                answer = await service.answer(upload, Asked(timeline, pictures, heat, teacher))
        return Response(answer.model_dump_json(exclude_none=True), media_type="application/json")

    @app.get("/model", response_model=Model, responses=_errors(401), dependencies=checks)
    async def model() -> Response:
        """What is served."""
        return Response(service.model().model_dump_json(exclude_none=True), media_type="application/json")

    @app.get("/metrics", response_class=Response, responses=_errors(401), dependencies=checks)
    async def metrics() -> Response:
        """Counters, for Prometheus."""
        return Response(service.counters.text(), media_type="text/plain; version=0.0.4")

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Answers as long as the service lives."""
        return {"status": "alive"}

    @app.get("/ready", responses=_errors(503))
    async def ready() -> dict[str, str]:
        """Whether uploads are answered."""
        if not service.ready:
            raise Refused(503, "starting, stopping, or without readers", retry_after=1)
        return {"status": "ready"}

    @app.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(page_text(), headers=HEADERS)


@cache
def page_text() -> str:
    """The page: one text with its style and script inside; it looks like the report."""
    own = files("stillmotion.serve") / "page"
    style = (files("stillmotion.report") / "templates" / "style.css").read_text(encoding="utf-8")
    text = (own / "page.html").read_text(encoding="utf-8")
    for mark, part in (("/*STYLE*/", style + (own / "page.css").read_text(encoding="utf-8")),
                       ("/*SCRIPT*/", (own / "page.js").read_text(encoding="utf-8"))):  # fmt: skip
        text = text.replace(mark, part)
    return text


def _errors(*codes: int) -> dict[int | str, dict[str, Any]]:
    return {code: {"model": Problem, "description": ERRORS[code]} for code in codes}


def _key_check(key: str) -> Callable[[Request], Awaitable[None]]:
    async def check(request: Request) -> None:
        given = request.headers.get("x-api-key") or request.headers.get("authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode(), key.encode()):
            raise Refused(401, "give the API key, as X-API-Key or as Authorization: Bearer")

    return check


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return _Last({"detail": error.reason}, error.status, headers)


async def _refuse_parameter(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    return _Last({"detail": f"{first['loc'][-1]}: {first['msg']}"}, 422)


class _Last(JSONResponse):
    """An error that may come before the upload is at its end.

    A connection that is closed while the client still sends is reset, and the client never reads the answer. So what
    still comes is thrown away for a moment before the connection is closed.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.headers["Connection"] = "close"
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        try:
            async with asyncio.timeout(LINGER_SECONDS):
                while (message := await receive())["type"] == "http.request" and message.get("more_body"):
                    pass
        except TimeoutError:
            pass
        await send({"type": "http.response.body", "body": b""})


class _Counting:
    """Counts answers by path and code."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app, self.requests = app, service.counters.requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        code = 500

        async def note(message: Message) -> None:
            nonlocal code
            if message["type"] == "http.response.start":
                code = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, note)
        finally:
            route = scope.get("route")  # only paths that there are: anybody may ask for any
            self.requests.labels(getattr(route, "path", "other"), str(code)).inc()
