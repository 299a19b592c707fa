"""Who may ask the review server, and what may be in a question: checked before anything is read or decided.

The server shows faces and takes decisions, and every page that a browser has open can send requests to it. So nothing
is believed: the name in `Host` must be the server's own (no DNS name that was pointed at this machine), everything but
the empty page needs the token that only the printed address holds, and a change must come from our own page.
"""

import asyncio
import hmac
import json
import re
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

TOKEN_HEADER = "X-Curate-Token"

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""What the page may do: its own scripts and styles, its own images, requests to this server, and nothing else."""

HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",  # images too: an erasure cannot reach into the cache of a browser
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
"""Headers of every answer."""

_PATH = re.compile(r"/[A-Za-z0-9._/-]*")
_TYPE = re.compile(r"application/json(\s*;\s*charset=utf-8)?", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What a client may take.

    Attributes:
        body_bytes: of a request.
        head_bytes: of the request line and the headers.
        head_seconds: from the connection, or the last answer, until a request is there with all its headers.
        body_seconds: until its body is there.
        write_seconds: that an answer may wait because the client does not read.
        connections: at once; those beyond are answered with 503.
    """

    body_bytes: int = 1 << 20
    head_bytes: int = 64 << 10
    head_seconds: float = 15.0
    body_seconds: float = 15.0
    write_seconds: float = 30.0
    connections: int = 128

    def __post_init__(self) -> None:
        """Refuse limits that nobody could keep."""
        for name in self.__slots__:
            if not getattr(self, name) > 0:
                raise ValueError(f"limits.{name} must be > 0, got {getattr(self, name)}")


class Refusal(Exception):  # noqa: N818
    """A request that is not answered with what it asked for.

    Attributes:
        status: of HTTP, 4xx.
        error: the rule and what was found.
        remedy: what to do.
        stale: whether the release on disk is not the one that was opened.
    """

    def __init__(self, status: int, error: str, remedy: str, *, stale: bool = False) -> None:
        super().__init__(error)
        self.status = status
        self.error = error
        self.remedy = remedy
        self.stale = stale

    def body(self) -> bytes:
        """The JSON that is sent."""
        stale = {"stale": True} if self.stale else {}
        return json.dumps({"error": self.error, "remedy": self.remedy, **stale}).encode()


class Guard:
    """ASGI middleware that lets through what our own page asks, and answers everything else with 4xx."""

    def __init__(self, app: ASGIApp, *, token: str, limits: Limits | None = None) -> None:
        if len(token) < 16:
            raise ValueError(f"token must have at least 16 characters, got {len(token)}")
        self._app = app
        self._token = token.encode()
        self._limits = limits or Limits()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check one request, read its body, pass it on."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            raise RuntimeError(f"the review server speaks HTTP only, got {scope['type']}")
        send = _with_headers(send)
        try:
            self._check(scope)
            body = await self._body(scope, receive)
        except Refusal as refusal:
            await _refuse(refusal, send)
            return
        await self._app(scope, _replay(body, receive), send)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        _check_head(scope, self._limits.head_bytes)
        host = _check_host(headers, scope["server"])
        _check_path(scope)
        if scope["method"] not in ("GET", "HEAD", "POST"):
            raise Refusal(405, f"method {scope['method']:.20} is not used here", "use GET or POST")
        if not _open(scope["path"]):
            self._check_token(headers)
            _check_site(headers)
        if scope["method"] == "POST":
            _check_origin(headers, host)
            _check_type(headers)
        _check_length(headers, scope["method"], self._limits.body_bytes)

    def _check_token(self, headers: Headers) -> None:
        given = headers.getlist(TOKEN_HEADER)
        if len(given) != 1 or not hmac.compare_digest(given[0].encode("latin-1"), self._token):
            raise Refusal(
                401,
                f"{'a wrong' if given else 'no'} token in header {TOKEN_HEADER}",
                "open the address that `curate review` printed, with all that follows its #",
            )

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        """The whole body; what is too large or too slow is not waited for."""
        if scope["method"] != "POST":
            return b""
        body = bytearray()
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Refusal(400, "the body ended early", "send the whole body")
                    body += message.get("body", b"")
                    more = message.get("more_body", False)
                    if len(body) > self._limits.body_bytes:
                        raise _too_large(len(body), self._limits.body_bytes)
        except TimeoutError as error:
            raise Refusal(408, "the body did not arrive in time", "send it again") from error
        return bytes(body)


def _check_head(scope: Scope, limit: int) -> None:
    """The server's own limit holds for a head that comes in pieces."""
    found = sum(len(name) + len(value) + 4 for name, value in scope["headers"])
    found += len(scope.get("raw_path", b"")) + len(scope["query_string"])
    if found > limit:
        raise Refusal(431, f"a request must have at most {limit} bytes before its body, has {found}", "ask for less")


def _check_host(headers: Headers, server: tuple[str, int] | None) -> str:
    """The one `Host`, which must be this machine's own name and the port that was connected to."""
    port = server[1] if server else 0
    allowed = (f"127.0.0.1:{port}", f"localhost:{port}")
    found = headers.getlist("host")
    if len(found) != 1 or found[0] not in allowed:
        remedy = f"open http://{allowed[0]}/ on the machine that runs curate; from elsewhere forward the same port"
        raise Refusal(400, f"Host must be {allowed[0]} or {allowed[1]}, got {found!r:.80}", remedy)
    return found[0]


def _check_path(scope: Scope) -> None:
    """Our own paths need no escapes, so none are decoded twice, and none can leave a folder."""
    path = scope.get("raw_path", b"").decode("latin-1")
    if not _PATH.fullmatch(path) or ".." in path or "//" in path:
        raise Refusal(404, "there is no such page", "open /")


def _open(path: str) -> bool:
    """Whether a path holds nothing of the release, and so needs no token."""
    return path == "/" or path.startswith("/static/")


def _check_site(headers: Headers) -> None:
    site = headers.get("sec-fetch-site", "same-origin")
    if site not in ("same-origin", "none"):
        raise Refusal(403, f"a request from another site (Sec-Fetch-Site: {site:.20})", "use the page of this server")


def _check_origin(headers: Headers, host: str) -> None:
    found = headers.getlist("origin")
    if found != [f"http://{host}"]:
        raise Refusal(403, f"Origin must be http://{host}, got {found!r:.80}", "use the page of this server")


def _check_type(headers: Headers) -> None:
    found = headers.getlist("content-type")
    if len(found) != 1 or not _TYPE.fullmatch(found[0].strip()):
        raise Refusal(415, f"Content-Type must be application/json, got {found!r:.80}", "send JSON")


def _check_length(headers: Headers, method: str, limit: int) -> None:
    stated = headers.get("content-length", "0")
    length = int(stated) if stated.isascii() and stated.isdigit() else -1
    if method != "POST" and (length != 0 or "transfer-encoding" in headers):
        raise Refusal(400, f"{method} must have no body", "ask again without it")
    if length > limit:
        raise _too_large(length, limit)


def _too_large(found: int, limit: int) -> Refusal:
    return Refusal(413, f"a body must have at most {limit} bytes, got {found} or more", "send fewer at once")


def _with_headers(send: Send) -> Send:
    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers[name] = value
        await send(message)

    return sent


def _replay(body: bytes, receive: Receive) -> Receive:
    """`receive` of a request whose body has been read."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def received() -> Message:
        return waiting.pop() if waiting else await receive()

    return received


async def _refuse(refusal: Refusal, send: Send) -> None:
    body = refusal.body()
    headers = {
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        "Connection": "close",  # what is left of the request is not read
    }
    encoded = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": refusal.status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})


class PatientProtocol(H11Protocol):
    """HTTP/1.1 of uvicorn, but a client that stalls is cut off: with its headers, or in reading the answer."""

    limits = Limits()
    _head: asyncio.TimerHandle | None = None
    _write: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._head = self.loop.call_later(self.limits.head_seconds, transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing more."""
        self._stop_head()
        self._stop_write()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        """Take what arrived; a part of a request starts the clock, a whole one stops it, more parts do not wind it."""
        super().handle_events()
        answering = self.cycle is not None and not self.cycle.response_complete
        if answering or self.transport.is_closing():
            self._stop_head()
        elif self._head is None and self.conn.trailing_data[0]:
            self._head = self.loop.call_later(self.limits.head_seconds, self.transport.abort)

    def pause_writing(self) -> None:
        """The client does not read: begin to wait for it."""
        super().pause_writing()
        self._stop_write()
        self._write = self.loop.call_later(self.limits.write_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """The client reads again."""
        self._stop_write()
        super().resume_writing()

    def _stop_head(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None

    def _stop_write(self) -> None:
        if self._write is not None:
            self._write.cancel()
            self._write = None


def patient_protocol(limits: Limits) -> type[H11Protocol]:
    """`PatientProtocol` with these limits."""
    return type("PatientProtocol", (PatientProtocol,), {"limits": limits})
