"""The review server: an app that only this machine can reach, for as long as one command runs."""

import contextlib
import html
import logging
import os
import secrets
import socket
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from review.desk import Desk
from review.guard import Guard, Limits, Refusal, patient_protocol
from review.route import refuse_http, routes

HOST = "127.0.0.1"
STATIC = Path(__file__).parent / "static"
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
"""Media type of each kind of file of the page; others are not served."""


class ServeError(ValueError):
    """The server cannot start; the message says why and what to do."""


def build_app(
    folder: Path, *, token: str, reviewer: str | None = None, read_only: bool = False, limits: Limits | None = None
) -> Starlette:
    """The app that reviews the release in `folder`.

    Args:
        folder: holds `release.json`.
        token: what each request must bring, at least 16 characters.
        reviewer: name that decisions carry where a browser gives none.
        read_only: refuse every change.
        limits: what a client may take.

    Raises:
        ReleaseError: no release, or one that breaks a rule.
        CatalogError: its tables cannot be read.
        Refusal: `reviewer` is no name.
    """
    desk = Desk.open(folder, reviewer=reviewer, read_only=read_only)
    page = {path.name: path for path in sorted(STATIC.iterdir()) if path.suffix in TYPES and not path.is_symlink()}

    async def index(_: Request) -> Response:
        return _file(page, "index.html")

    async def static(request: Request) -> Response:
        return _file(page, request.path_params["name"])

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        threading.Thread(target=_warm, args=(desk,), name="warm", daemon=True).start()
        yield
        desk.close()

    app = Starlette(
        routes=[Route("/", index), Route("/static/{name}", static), *routes()],
        middleware=[Middleware(Guard, token=token, limits=limits)],
        exception_handlers={HTTPException: refuse_http},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    app.state.desk = desk
    return app


def serve(
    folder: Path,
    *,
    port: int = 0,
    reviewer: str | None = None,
    read_only: bool = False,
    open_browser: Callable[[str], object] | None = None,
    say: Callable[[str], None],
) -> None:
    """Serve the review of the release in `folder` until Ctrl-C.

    Args:
        folder: holds `release.json`.
        port: 0 for any that is free.
        reviewer: see `build_app`.
        read_only: see `build_app`.
        open_browser: called with the address of a file that leads to the page, such as `webbrowser.open`; None opens
            none. The address of the page holds the token, and what a browser is started with every user can read.
        say: called with the address once it answers.

    Raises:
        ServeError: the port is taken or not allowed, or `reviewer` is no name.
        ReleaseError: no release, or one that breaks a rule.
        CatalogError: its tables cannot be read.
    """
    with _listening(port) as listener, contextlib.suppress(KeyboardInterrupt):
        server, url = _server(folder, listener, reviewer=reviewer, read_only=read_only, limits=Limits())
        say(url)
        with contextlib.ExitStack() as stack:
            if open_browser is not None:
                open_browser(stack.enter_context(_leading_to(url)).as_uri())
            server.run(sockets=[listener])  # raises the KeyboardInterrupt again that it was stopped by


@contextmanager
def _leading_to(url: str) -> Iterator[Path]:
    """A page on disk, for this user alone, that opens another."""
    with tempfile.TemporaryDirectory(prefix="curate-review-") as folder:
        path = Path(folder) / "open.html"
        with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
            file.write(f'<!doctype html><meta http-equiv="refresh" content="0; url={html.escape(url)}">\n')
        yield path


@contextmanager
def running(
    folder: Path, *, port: int = 0, reviewer: str | None = None, read_only: bool = False, limits: Limits | None = None
) -> Iterator[str]:
    """The address of a server that runs in a thread of its own; arguments and errors as of `serve` and `build_app`."""
    with _listening(port) as listener:
        server, url = _server(folder, listener, reviewer=reviewer, read_only=read_only, limits=limits or Limits())
        thread = threading.Thread(target=server.run, args=([listener],), name="review", daemon=True)
        thread.start()
        try:
            yield url
        finally:
            server.should_exit = True
            thread.join()


def _server(
    folder: Path, listener: socket.socket, *, reviewer: str | None, read_only: bool, limits: Limits
) -> tuple[uvicorn.Server, str]:
    token = secrets.token_urlsafe(32)
    try:
        app = build_app(folder, token=token, reviewer=reviewer, read_only=read_only, limits=limits)
    except Refusal as refusal:
        raise ServeError(f"{refusal.error}; {refusal.remedy}") from refusal
    config = uvicorn.Config(
        app,
        loop="asyncio",
        http=patient_protocol(limits),
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="critical",  # a request holds filters, and so values of attributes
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=limits.connections,
        h11_max_incomplete_event_size=limits.head_bytes,
        timeout_keep_alive=int(limits.head_seconds) or 1,
        timeout_graceful_shutdown=3,
    )
    return uvicorn.Server(config), f"http://{HOST}:{listener.getsockname()[1]}/#token={token}"


@contextmanager
def _listening(port: int) -> Iterator[socket.socket]:
    """A socket that only this machine reaches."""
    if not (port == 0 or 1024 <= port <= 65535):
        raise ServeError(f"port must be 0 for any, or within 1024 and 65535, got {port}")
    # With its protocol stated, asyncio sends at once what it has; else every answer waits 40 ms for an acknowledgement.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port closed just now may be used again
        try:
            listener.bind((HOST, port))
            listener.listen(128)
        except OSError as error:
            raise ServeError(
                f"port {port} of {HOST} cannot be used ({error.strerror}); choose another --port"
            ) from error
        yield listener


def _warm(desk: Desk) -> None:
    """Read the columns before they are asked for."""
    try:
        desk.warm()
    except (ValueError, OSError) as error:  # whoever asks for them is told what is wrong
        logging.getLogger("curate.review").warning("columns cannot be read: %s", type(error).__name__)


def _file(page: Mapping[str, Path], name: str) -> Response:
    path = page.get(name)
    if path is None:
        raise HTTPException(404)
    return Response(path.read_bytes(), media_type=f"{TYPES[path.suffix]}; charset=utf-8")
