"""Hostile requests: each is refused with 4xx (or cut off), nothing is recorded, and the server goes on."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from review.guard import HEADERS, POLICY, Guard, Limits
from review.server import running
from tests.review import releases
from tests.review.client import Client, drained, raw, status_of

LIMITS = Limits(head_seconds=1.0, body_seconds=1.0, write_seconds=1.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return releases.write(tmp_path_factory.mktemp("guard"), releases.figures(12))


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[Client]:
    with running(folder, reviewer="Ada", limits=LIMITS) as url:
        yield Client.of(url, "Ada")


@pytest.fixture(autouse=True)
def unharmed(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test the server answers, and no event was recorded."""
    yield
    if "client" in request.fixturenames:
        client, folder = request.getfixturevalue("client"), request.getfixturevalue("folder")
        assert client.get("/api/session").status == 200
        assert not list((folder.parent.parent / "reviews").glob("*/*.json"))


def head(client: Client, line: str, *headers: str, host: str | None = None) -> bytes:
    """A request with the right token and host, and these headers."""
    host = f"Host: 127.0.0.1:{client.port}" if host is None else host
    lines = [line, *filter(None, [host]), f"X-Curate-Token: {client.token}", "Connection: close", *headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def decision(client: Client) -> tuple[bytes, dict[str, str]]:
    """The body and the headers of an honest change."""
    sample = client.get("/api/page").json["samples"][0]["id"]
    body = json.dumps({"ids": [sample], "verdict": "approve", "reasons": []}).encode()
    origin = f"http://127.0.0.1:{client.port}"
    return body, {**client.headers(), "Origin": origin, "Content-Type": "application/json"}


@pytest.mark.parametrize(
    "host",
    [
        "",
        "Host: evil.example",
        "Host: evil.example:{port}",
        "Host: 127.0.0.1",
        "Host: 127.0.0.1:1",
        "Host: 127.0.0.1.nip.io:{port}",
        "Host: localhost.evil.example:{port}",
        "Host: 127.0.0.1:{port}.evil.example",
        "Host: 127.0.0.1:{port}\r\nHost: evil.example",
        "Host: 127.0.0.1:{port}\r\nHost: 127.0.0.1:{port}",
        "Host: 0.0.0.0:{port}",
        "Host: [::1]:{port}",
        "Host: 127.1:{port}",
        "Host: 2130706433:{port}",
        "Host: user@127.0.0.1:{port}",
        "Host: 127.0.0.1:{port}, evil.example",
        "Host: LOCALHOST.:{port}",
    ],
)
@pytest.mark.parametrize("path", ["/", "/static/app.js", "/api/session", "/thumb/" + "0" * 32])
def test_a_name_that_is_not_this_machine_s_own_gets_nothing(client: Client, host: str, path: str) -> None:
    found = raw(client.port, head(client, f"GET {path} HTTP/1.1", host=host.format(port=client.port)))
    assert status_of(found) == 400
    assert b"fingerprint" not in found
    assert b"<html" not in found.lower()


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
def test_the_machine_s_own_names_are_answered(client: Client, name: str) -> None:
    assert status_of(raw(client.port, head(client, "GET / HTTP/1.1", host=f"Host: {name}:{client.port}"))) == 200


def test_a_request_to_another_host_through_this_one_gets_nothing(client: Client) -> None:
    for line in (
        "GET http://evil.example/ HTTP/1.1",
        f"GET http://127.0.0.1:{client.port}/ HTTP/1.1",
        "OPTIONS * HTTP/1.1",
    ):
        assert status_of(raw(client.port, head(client, line))) == 404
    assert status_of(raw(client.port, head(client, "CONNECT evil.example:443 HTTP/1.1"))) in (400, 404)


@pytest.mark.parametrize(
    "path", ["/api/session", "/api/overview", "/api/page", "/api/nothing", "/thumb/x", "/mask/x", "/x"]
)
@pytest.mark.parametrize("token", [[], ["wrong"], ["{token}", "{token}"], [""], ["{token}x"], ["ü"], ["{prefix}"]])
def test_without_the_token_nothing_is_told_not_even_what_there_is(client: Client, path: str, token: list[str]) -> None:
    given = [one.format(token=client.token, prefix=client.token[:-1]) for one in token]
    lines = [f"GET {path} HTTP/1.1", f"Host: 127.0.0.1:{client.port}", *(f"X-Curate-Token: {one}" for one in given)]
    found = raw(client.port, ("\r\n".join([*lines, "Connection: close"]) + "\r\n\r\n").encode("latin-1"))
    assert status_of(found) == 401
    assert b"release" not in found


def test_the_token_is_no_part_of_an_address_or_a_cookie(client: Client) -> None:
    for path, header in ((f"/api/session?token={client.token}", {}), ("/api/session", {"Cookie": client.token})):
        assert client.ask("GET", path, {"Host": f"127.0.0.1:{client.port}", **header}).status == 401


@pytest.mark.parametrize(
    "path",
    [
        "/static/../desk.py",
        "/static/%2e%2e/desk.py",
        "/static/..%2fdesk.py",
        "/static/%2e%2e%2fdesk.py",
        "/static/..%5cdesk.py",
        "/static/.%2e/desk.py",
        "/static//etc/passwd",
        "//etc/passwd",
        "/static/%00app.js",
        "/static/app.js%00.css",
        "/static/",
        "/static/nothing.js",
        "/static/app.js/",
        "/static/APP.JS",
        "/static/%61pp.js",
        "/etc/passwd",
        "/thumb/..%2f..%2frelease.json",
        "/thumb/../api/session",
        "/%2e%2e/%2e%2e/etc/passwd",
    ],
)
def test_no_path_leaves_the_table_of_files(client: Client, path: str) -> None:
    found = raw(client.port, head(client, f"GET {path} HTTP/1.1"))
    assert status_of(found) == 404
    assert b"root:" not in found
    assert b"import" not in found


@pytest.mark.parametrize("path", ["/api/sample/x", "/thumb/" + "g" * 32, "/mask/" + "0" * 31, "/thumb/x/" + "0" * 32])
def test_what_is_no_sample_id_is_refused_before_anything_is_read(client: Client, path: str) -> None:
    assert client.get(path).status == 400


def test_bytes_that_are_no_request_are_refused(client: Client) -> None:
    for data in (
        b"\x16\x03\x01\x02\x00" * 20,
        b"GET\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\x00b\r\n\r\n",
        b"\r\n\r\nnonsense \r\n\r\n",
    ):
        assert status_of(raw(client.port, data)) in (400, 0)
    assert status_of(raw(client.port, b"GET / HTTP/9.9\r\nHost: x\r\n\r\n")) in (400, 505)


def test_headers_without_end_are_refused(client: Client) -> None:
    found = raw(client.port, head(client, "GET / HTTP/1.1", f"X-Long: {'a' * (LIMITS.head_bytes + 10)}"))
    assert status_of(found) in (400, 431)
    found = raw(client.port, head(client, f"GET /api/page?filter={'a' * (LIMITS.head_bytes + 10)} HTTP/1.1"))
    assert status_of(found) in (400, 431)


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "FOO"])
@pytest.mark.parametrize("path", ["/", "/api/decide", "/api/session"])
def test_methods_that_nobody_uses_are_refused(client: Client, method: str, path: str) -> None:
    assert status_of(raw(client.port, head(client, f"{method} {path} HTTP/1.1"))) == 405


def test_a_change_by_get_and_a_page_by_post_are_refused(client: Client) -> None:
    body, headers = decision(client)
    assert client.get("/api/decide").status == 405
    assert client.ask("POST", "/api/page", headers, body).status == 405
    assert client.ask("POST", "/", headers, body).status == 405


@pytest.mark.parametrize(
    ("changed", "status"),
    [
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Origin": "https://127.0.0.1:{port}"}, 403),
        ({"Origin": "http://127.0.0.1:{port}.evil.example"}, 403),
        ({"Origin": "http://localhost:{port}"}, 403),  # not the host that it was sent to
        ({"Origin": None}, 403),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content-Type": "multipart/form-data; boundary=x"}, 415),
        ({"Content-Type": "text/plain; application/json"}, 415),
        ({"Content-Type": "application/json; charset=utf-16"}, 415),
        ({"Content-Type": None}, 415),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"X-Curate-Token": None}, 401),
        ({"X-Curate-Token": "wrong"}, 401),
    ],
)
def test_a_change_from_another_page_is_refused(client: Client, changed: dict[str, str | None], status: int) -> None:
    body, headers = decision(client)
    sent = {name: value for name, value in {**headers, **changed}.items() if value is not None}
    sent = {name: value.format(port=client.port) for name, value in sent.items()}
    assert client.ask("POST", "/api/decide", sent, body).status == status


def test_two_origins_are_refused(client: Client) -> None:
    origin = f"Origin: http://127.0.0.1:{client.port}"
    lines = [origin, "Origin: http://evil.example", "Content-Type: application/json", "Content-Length: 2"]
    assert status_of(raw(client.port, head(client, "POST /api/decide HTTP/1.1", *lines) + b"{}")) == 403


def post(client: Client, *headers: str) -> bytes:
    origin = f"Origin: http://127.0.0.1:{client.port}"
    return head(client, "POST /api/decide HTTP/1.1", origin, "Content-Type: application/json", *headers)


def test_a_body_that_says_it_is_huge_is_refused_before_it_is_sent(client: Client) -> None:
    found = raw(client.port, post(client, f"Content-Length: {LIMITS.body_bytes + 1}") + b"{")
    assert status_of(found) == 413


def test_a_body_without_a_length_is_refused_when_it_grows_beyond_the_limit(client: Client) -> None:
    chunk = b"10000\r\n" + b"a" * 65536 + b"\r\n"
    with socket.create_connection(("127.0.0.1", client.port), timeout=20) as connection:
        connection.sendall(post(client, "Transfer-Encoding: chunked"))
        sent = 0
        try:
            while sent < 200:  # 13 MB, if it is let
                connection.sendall(chunk)
                sent += 1
        except (ConnectionResetError, BrokenPipeError):
            pass
        found = drained(connection)
    assert status_of(found) in (413, 0)  # 0: the answer was lost when the connection was reset
    assert sent < 200 or status_of(found) == 413


def test_a_body_of_exactly_the_limit_is_read(client: Client) -> None:
    body = b" " * LIMITS.body_bytes
    assert status_of(raw(client.port, post(client, f"Content-Length: {len(body)}") + body)) == 400  # no JSON, but read
    found = raw(client.port, post(client, f"Content-Length: {len(body) + 1}") + body + b" ")
    assert status_of(found) == 413


def test_a_body_that_ends_early_records_nothing(client: Client) -> None:
    body, _ = decision(client)
    assert status_of(raw(client.port, post(client, f"Content-Length: {len(body) + 5}") + body, end=True)) in (0, 400)


def test_two_lengths_are_refused(client: Client) -> None:
    both = raw(client.port, post(client, "Content-Length: 2", "Content-Length: 30") + b"{}")
    assert status_of(both) == 400
    smuggled = raw(client.port, post(client, "Content-Length: 2", "Transfer-Encoding: chunked") + b"0\r\n\r\n")
    assert status_of(smuggled) == 400


def test_a_get_with_a_body_is_refused(client: Client) -> None:
    for lines, body in ((["Content-Length: 2"], b"{}"), (["Transfer-Encoding: chunked"], b"0\r\n\r\n")):
        assert status_of(raw(client.port, head(client, "GET /api/session HTTP/1.1", *lines) + body)) == 400


@pytest.mark.parametrize(
    "body",
    [
        b"", b"[]", b"null", b"1", b"{", b'{"ids": NaN}', b'{"ids": 1e999}', b"[" * 100_000, b'{"ids":' * 50_000,
        b"\xff\xfe", b'{"ids": ["\\ud800"]}', b'{"ids": []}', b'{"ids": {}}', b'{"ids": null, "verdict": "approve"}',
        b'{"ids": ["../../etc/passwd"], "verdict": "approve"}', b'{"surplus": 1}',
        b'{"ids": [1], "verdict": "approve"}',
    ],
)  # fmt: skip
def test_a_body_that_is_no_change_is_refused(client: Client, body: bytes) -> None:
    _, headers = decision(client)
    found = client.ask("POST", "/api/decide", headers, body)
    assert found.status == 400
    assert set(found.json) == {"error", "remedy"}


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("/api/page", {"limit": "10000"}),
        ("/api/page", {"limit": "0"}),
        ("/api/page", {"limit": "1e3"}),
        ("/api/page", {"limit": "٣"}),
        ("/api/page", {"offset": "-1"}),
        ("/api/page", {"offset": "9" * 30}),
        ("/api/page", {"surplus": "1"}),
        ("/api/page", {"filter": "{"}),
        ("/api/page", {"filter": "[" * 10_000}),
        ("/api/page", {"filter": '{"decision": ["kepp"]}'}),
        ("/api/page", {"filter": '{"range": {"q": [NaN, 1]}}'}),
        ("/api/page", {"filter": '{"id": "../../x"}'}),
        ("/api/page", {"filter": '{"attr": {"__class__": ["x"]}}'}),
        ("/api/histogram", {"column": "sample_id"}),
        ("/api/histogram", {"column": "q", "bins": "100000000"}),
        ("/api/histogram", {"column": "q", "by": "no attribute"}),
        ("/api/histogram", {}),
        ("/api/bias", {"attribute": "no attribute"}),
        ("/api/clusters", {"path": "0,x"}),
        ("/thumb/" + "0" * 32, {"side": "100000"}),
        ("/mask/" + "0" * 32, {"kind": "../x"}),
    ],
)
def test_questions_that_nobody_can_answer_are_refused(client: Client, path: str, query: dict[str, str]) -> None:
    found = client.get(path, **query)
    assert found.status in (400, 404)
    assert found.json["error"]
    assert found.json["remedy"]


def test_a_parameter_given_twice_is_refused(client: Client) -> None:
    assert client.get("/api/page?limit=1&limit=2").status == 400


@pytest.mark.parametrize("path", ["/", "/static/app.js", "/api/session", "/api/nothing", "/no", "/api/decide", "image"])
def test_every_answer_carries_the_headers_that_bind_the_browser(client: Client, path: str) -> None:
    sample = next(one["id"] for one in client.get("/api/page").json["samples"] if one["pixels"])
    found = client.get(f"/thumb/{sample}" if path == "image" else path)
    for name, value in HEADERS.items():
        assert found.headers[name.lower()] == value
    assert "server" not in found.headers
    assert "access-control-allow-origin" not in found.headers
    assert "'unsafe" not in POLICY
    assert POLICY.startswith("default-src 'none'")


def test_the_page_without_the_token_tells_nothing_of_the_release(client: Client) -> None:
    found = client.ask("GET", "/", {"Host": f"127.0.0.1:{client.port}"})
    assert found.status == 200
    fingerprint = client.get("/api/session").json["fingerprint"]
    assert fingerprint[:12].encode() not in found.body
    assert client.token.encode() not in found.body


def closed_within(connection: socket.socket, seconds: float) -> bool:
    connection.settimeout(seconds)
    try:
        while connection.recv(1 << 16):
            pass
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False
    return True


@pytest.mark.parametrize(
    "send",
    [
        lambda _: b"",
        lambda _: b"GET / HT",
        lambda _: b"GET / HTTP/1.1\r\nHost: ",
        lambda client: post(client, "Content-Length: 100") + b"{",
        lambda client: post(client, "Transfer-Encoding: chunked") + b"5\r\n{",
        lambda client: head(client, "GET / HTTP/1.1").replace(b"Connection: close\r\n", b"") + b"GET / HT",
    ],
    ids=["silent", "half a line", "half a header", "half a body", "half a chunk", "half a second request"],
)
def test_a_client_that_stalls_is_cut_off(client: Client, send: Callable[[Client], bytes]) -> None:
    with socket.create_connection(("127.0.0.1", client.port)) as connection:
        connection.sendall(send(client))
        assert closed_within(connection, 20)


def test_a_client_that_drips_is_cut_off(client: Client) -> None:
    """A byte every now and then does not wind the clock up again."""
    with socket.create_connection(("127.0.0.1", client.port)) as connection:
        connection.sendall(f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{client.port}\r\n".encode())
        start = time.monotonic()
        try:
            while time.monotonic() - start < 30:
                connection.sendall(b"X-A: b\r\n")
                time.sleep(0.2)
        except (BrokenPipeError, ConnectionResetError):
            return
    pytest.fail("a dripping client was waited for")


def test_clients_that_stall_do_not_keep_others_from_being_answered(client: Client) -> None:
    stalled = [socket.create_connection(("127.0.0.1", client.port)) for _ in range(60)]
    try:
        for connection in stalled:
            connection.sendall(b"GET / HTTP/1.1\r\n")
        assert client.get("/api/session").status == 200
    finally:
        for connection in stalled:
            connection.close()


def test_more_connections_than_allowed_are_told_to_come_back_and_may(folder: Path) -> None:
    with running(folder, limits=Limits(connections=8, head_seconds=1.0)) as url:
        client = Client.of(url)
        stalled = [socket.create_connection(("127.0.0.1", client.port)) for _ in range(20)]
        deadline = time.monotonic() + 60
        statuses = []
        while time.monotonic() < deadline and (not statuses or statuses[-1] != 200):
            statuses.append(client.get("/api/session").status)
            time.sleep(0.1)
        assert statuses[-1] == 200
        assert set(statuses) <= {200, 503}
        for connection in stalled:
            connection.close()


def test_a_client_that_does_not_read_is_cut_off(client: Client) -> None:
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", client.port))
        asked = head(client, "GET /api/signoff HTTP/1.1").replace(b"Connection: close\r\n", b"")
        start = time.monotonic()
        try:
            while time.monotonic() - start < 30:
                connection.sendall(asked)  # pipelined, none of the answers read
        except (BrokenPipeError, ConnectionResetError):
            return
    pytest.fail("a client that does not read was waited for")


def test_many_hostile_requests_at_once_leave_the_server_well(client: Client) -> None:
    statuses: list[int] = []

    def attack() -> None:
        asked = [head(client, "GET /api/page HTTP/1.1", host=host) for host in ("Host: evil", "", None)]
        statuses.extend(status_of(raw(client.port, data)) for data in asked)

    threads = [threading.Thread(target=attack) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [200] * 10 + [400] * 20


def test_a_token_that_could_be_guessed_and_limits_of_nothing_are_refused() -> None:
    async def app(*_: object) -> None:
        raise AssertionError

    with pytest.raises(ValueError, match="token must have at least 16"):
        Guard(app, token="short")
    with pytest.raises(ValueError, match="body_bytes must be > 0"):
        Limits(body_bytes=0)
