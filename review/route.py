"""The addresses of the review server: each asks one function, in a thread, and every failure is an answer in JSON."""

import functools
import json
import logging
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import anyio
import anyio.to_thread
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from manifests.datacard import DataCardError
from manifests.release import ReleaseError
from manifests.shard import ShardError
from review.api import IMAGES, READS
from review.ask import Ask, parse_body, parse_params, reviewer_name
from review.catalog import UnknownSample
from review.change import CHANGES
from review.columns import CatalogError
from review.event import EventError
from review.guard import Refusal
from review.integrity import BusyError
from review.log import FrozenListError, ReviewLogError, WriteError
from review.pixels import PixelsError
from review.query import QueryError

Answer = Callable[[Ask], Any]
THREADS = 8
"""Questions answered at once; the rest wait."""
PIXEL_THREADS = 4
"""Pictures made at once: the largest allowed one takes some 200 MB while it is decoded."""
READ_ONLY = "the server was started with --read-only"
_FREE = ("/api/session", "/api/integrity")
"""Addresses that answer also when the release on disk is not the one that was opened."""

_VERIFY = "`curate verify` on the release lists all that is broken"
_ERRORS: tuple[tuple[type[Exception], int, str], ...] = (
    (QueryError, 400, "ask for what the release holds"),
    (EventError, 400, "change what the message names"),
    (DataCardError, 400, "answer the questions that /api/signoff lists"),
    (UnknownSample, 404, "choose a sample of this release"),
    (PixelsError, 404, "ask for what /api/sample says is there"),
    (BusyError, 409, "wait for it, or stop it"),
    (ReviewLogError, 409, "`curate review verify` names what is wrong with the log"),
    (FrozenListError, 409, "`curate review verify` names what is wrong with the log"),
    (WriteError, 507, "do what the message says"),
    (CatalogError, 409, _VERIFY),
    (ShardError, 409, _VERIFY),
    (ReleaseError, 409, _VERIFY),
    (OSError, 409, _VERIFY),
)
"""Status and remedy of each error, the first that fits; its message says the rule and what was found."""

log = logging.getLogger("curate.review")


def routes() -> list[Route]:
    """All addresses but those of the page itself."""
    found = {path: {"GET": (answer, names)} for path, (answer, names) in (*READS.items(), *IMAGES.items())}
    for path, (answer, names) in CHANGES.items():
        found.setdefault(path, {})["POST"] = (answer, names)
    limits = {"api": anyio.CapacityLimiter(THREADS), "pixels": anyio.CapacityLimiter(PIXEL_THREADS)}
    return [
        Route(
            path,
            functools.partial(_endpoint, methods, limits["pixels" if path in IMAGES else "api"]),
            methods=list(methods),
        )
        for path, methods in found.items()
    ]


async def _endpoint(
    methods: Mapping[str, tuple[Answer, Sequence[str]]], limiter: anyio.CapacityLimiter, request: Request
) -> Response:
    answer, names = methods["POST" if request.method == "POST" else "GET"]
    body = await request.body() if request.method == "POST" else None
    return await anyio.to_thread.run_sync(_answered, answer, names, request, body, limiter=limiter)


def _answered(answer: Answer, names: Sequence[str], request: Request, body: bytes | None) -> Response:
    """The answer to one question, whatever happens on the way."""
    try:
        found = answer(_asked(names, request, body))
        if isinstance(found, Response):
            return found
        return Response(json.dumps(found, allow_nan=False), media_type="application/json")
    except Refusal as refusal:
        return _refused(refusal)
    except Exception as error:
        return _refused(_refusal_of(error, request))


def _asked(names: Sequence[str], request: Request, body: bytes | None) -> Ask:
    desk = request.app.state.desk
    if request.url.path not in _FREE:
        desk.check_fresh()
    if body is None:
        return Ask(
            desk=desk,
            path=request.path_params,
            query=parse_params(request.query_params, names),
            name=reviewer_name(request.headers),
        )
    if desk.read_only and request.url.path not in _FREE:
        raise Refusal(403, f"nothing can be changed: {READ_ONLY}", "start `curate review` without it")
    return Ask(
        desk=desk,
        path=request.path_params,
        query=parse_params(request.query_params, ()),
        body=parse_body(body, names),
        name=reviewer_name(request.headers),
    )


def _refusal_of(error: Exception, request: Request) -> Refusal:
    for kind, status, remedy in _ERRORS:
        if isinstance(error, kind):
            return Refusal(status, str(error), remedy)
    frames = "".join(traceback.format_tb(error.__traceback__))  # without the message, which may hold a path of a source
    log.error("%s %s: a defect: %s\n%s", request.method, request.url.path, type(error).__name__, frames)
    return Refusal(500, f"a defect of the review server: {type(error).__name__}", "report what the terminal shows")


def _refused(refusal: Refusal) -> Response:
    return Response(refusal.body(), status_code=refusal.status, media_type="application/json")


async def refuse_http(request: Request, error: Exception) -> Response:
    """The answer to an address or a method that there is not."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        return _refused(Refusal(405, f"{request.url.path} has no {request.method}", "use the page of this server"))
    return _refused(Refusal(error.status_code, "there is no such page", "open /"))
