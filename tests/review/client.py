"""Clients of the review server: an honest one, as the page is, and a socket that sends any bytes at all."""

import http.client
import json
import socket
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

TIMEOUT = 60


@dataclass(frozen=True, kw_only=True)
class Answer:
    """An answer: status, headers by lower-case name, body."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True, kw_only=True)
class Client:
    """One browser: the address as it was printed, and the name of who sits there."""

    port: int
    token: str
    reviewer: str | None = None

    @classmethod
    def of(cls, url: str, reviewer: str | None = None) -> "Client":
        address, token = url.split("/#token=")
        return cls(port=int(address.rsplit(":", 1)[1]), token=token, reviewer=reviewer)

    def headers(self) -> dict[str, str]:
        name = {} if self.reviewer is None else {"X-Reviewer": quote(self.reviewer)}
        return {"Host": f"127.0.0.1:{self.port}", "X-Curate-Token": self.token, **name}

    def get(self, address: str, **query: Any) -> Answer:
        texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in query.items()}
        return self.ask("GET", f"{address}?{urlencode(texts)}" if texts else address, self.headers())

    def post(self, address: str, **body: Any) -> Answer:
        origin = {"Origin": f"http://127.0.0.1:{self.port}", "Content-Type": "application/json"}
        return self.ask("POST", address, {**self.headers(), **origin}, json.dumps(body).encode())

    def ask(self, method: str, path: str, headers: dict[str, str], body: bytes | None = None) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT)
        try:
            connection.request(method, path, body, headers)
            found = connection.getresponse()
            return Answer(status=found.status, headers={k.lower(): v for k, v in found.getheaders()}, body=found.read())
        finally:
            connection.close()


def raw(port: int, data: bytes, *, end: bool = False) -> bytes:
    """What the server sends until it closes, after these very bytes; ``end`` says that no more will come."""
    with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT) as connection:
        connection.sendall(data)
        if end:
            connection.shutdown(socket.SHUT_WR)
        return drained(connection)


def drained(connection: socket.socket) -> bytes:
    """All that a connection sends until its end."""
    found = b""
    try:
        while more := connection.recv(1 << 16):
            found += more
    except (ConnectionResetError, TimeoutError):
        pass
    return found


def status_of(answer: bytes) -> int:
    """The status of a raw answer; 0 where there was none."""
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else 0
