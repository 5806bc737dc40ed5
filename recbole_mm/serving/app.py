"""The paths of the server: what they take and what they answer."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import anyio
from anyio import CapacityLimiter
from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from recbole_mm import __version__
from recbole_mm.errors import RecboleMMError
from recbole_mm.serving.batching import BusyError
from recbole_mm.serving.guard import Guard
from recbole_mm.serving.metrics import CONTENT_TYPE
from recbole_mm.serving.schema import (
    LONGEST_ID,
    Health,
    Item,
    Items,
    Problem,
    Recommendations,
    RecommendRequest,
    RunFacts,
    SimilarItems,
    SimilarRequest,
    Users,
)
from recbole_mm.serving.served import UnknownIdError
from recbole_mm.serving.service import Service
from recbole_mm.utils.escaping import one_line

MOST_FOUND = 100
"""Users or items that one search lists."""

LONGEST_ERROR = 1000
"""Characters of an error."""

READ_AT_ONCE = 2
"""Pictures that are decoded, and searches that are made, at once."""

NO_TELEMETRY: Any = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}

Text = Annotated[str, Query(max_length=LONGEST_ID, description="the beginning of an id, or words of an id and a title")]
Count = Annotated[int, Query(ge=1, le=MOST_FOUND)]


class Json(JSONResponse):
    """JSON in ASCII, which holds every text that data have, broken characters included."""

    def render(self, content: Any) -> bytes:
        """Return the body."""
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


def create_app(service: Service, key: str | None = None, seconds: float = 30) -> FastAPI:
    """Return the application that answers by a service.

    Args:
        service: started and stopped with the application.
        key: that requests must show; None: none is asked for, and only requests to this machine are answered.
        seconds: bound of a request.
    """

    @asynccontextmanager
    async def alive(app: FastAPI) -> AsyncIterator[None]:
        await service.start()
        yield
        await service.stop()

    app = FastAPI(
        title="recbole-mm serve",
        version=__version__,
        description="Recommendations of a finished run.",
        lifespan=alive,
        docs_url=None,  # pages that would load their scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        telemetry=NO_TELEMETRY,
        default_response_class=Json,
        responses={status: {"model": Problem} for status in (401, 404, 413, 422, 503, 504)},
    )
    app.add_middleware(Guard, metrics=service.metrics, key=key, seconds=seconds)
    app.add_exception_handler(Exception, _problem)
    for kind in (RecboleMMError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, _problem)
    _add_answers(app, service)
    _add_items(app, service)
    _add_about(app, service)
    return app


def _add_answers(app: FastAPI, service: Service) -> None:
    @app.post("/recommend", response_model=Recommendations)
    async def recommend(request: RecommendRequest) -> Response:
        """Recommend items to a user of the data, or after a history."""
        return Json({"reason": None, **await service.ask(request)})

    @app.post("/similar", response_model=SimilarItems)
    async def similar(request: SimilarRequest) -> Response:
        """List the items that are most like another to the model."""
        return Json(await service.ask(request))


def _add_items(app: FastAPI, service: Service) -> None:
    limiter = CapacityLimiter(READ_AT_ONCE)

    async def in_thread(function: Any, *arguments: Any) -> Any:
        """Call what reads files or takes long in a thread, of which there are few."""
        return await anyio.to_thread.run_sync(partial(function, *arguments), limiter=limiter)

    @app.get("/items", response_model=Items)
    async def find_items(q: Text = "", limit: Count = 24) -> Response:
        """Find items by words of their ids and titles, the most popular first."""
        return Json({"items": await in_thread(service.served.found_items, q, limit)})

    @app.get("/items/{item:path}", response_model=Item)
    async def item(item: str) -> Response:
        """Return an item with its columns."""
        return Json(service.served.item(item))

    @app.get("/images/{item:path}", response_class=Response, responses={200: {"content": {"image/jpeg": {}}}})
    async def image(item: str) -> Response:
        """Return a small picture of an item."""
        picture = await in_thread(service.served.picture, item)
        if picture is None:
            raise HTTPException(404, f"item {item!r} has no picture")
        return Response(picture, media_type="image/jpeg", headers={"cache-control": "private, max-age=60"})

    @app.get("/users", response_model=Users)
    async def find_users(q: Text = "", limit: Count = 24) -> Response:
        """Find users by the beginning of their ids."""
        return Json({"users": service.served.users.beginning_with(q, limit)})


def _add_about(app: FastAPI, service: Service) -> None:
    page, policy = read_page()

    @app.get("/run", response_model=RunFacts)
    async def run() -> Response:
        """Return what is served."""
        return Json(service.served.facts())

    @app.get("/health", response_model=Health)
    async def health() -> Response:
        """Return that requests are answered, and by which run."""
        return Json({"status": "ok", "run": service.served.name})

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Return counts in Prometheus's text format."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE)

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        headers = {"content-security-policy": policy}
        return Response(page, media_type="text/html; charset=utf-8", headers=headers)


def read_page() -> tuple[str, str]:
    """Return the page, and the policy under which a browser runs its own script and style and nothing else."""
    page = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
    allowed = {}
    for tag in ("script", "style"):
        found = re.search(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        assert found is not None
        allowed[tag] = base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode()
    policy = (
        f"default-src 'none'; script-src 'sha256-{allowed['script']}'; style-src 'sha256-{allowed['style']}'; "
        "img-src blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return page, policy


async def _problem(request: Request, error: Exception) -> Response:
    """Return an error as one line. What was sent is not repeated, but for ids in the messages of this package."""
    status, headers = 422, {}
    text = str(error)
    if isinstance(error, HTTPException):
        status, text = error.status_code, one_line(str(error.detail))
    elif isinstance(error, RequestValidationError):
        first = error.errors()[0]
        text = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        if first["type"] == "model_attributes_type":
            text = "body: give a JSON object, with the header Content-Type: application/json"
    elif isinstance(error, BusyError):
        status, headers = 503, {"retry-after": "1"}
    elif isinstance(error, UnknownIdError):
        status = 404
    elif not isinstance(error, RecboleMMError):
        status, text = 500, "the request could not be answered; the server's log says why"
    return Json({"error": one_line(text)[:LONGEST_ERROR]}, status, headers)
