"""What is fetched is what was published, or nothing is kept; the server is real, on loopback."""

import fcntl
import hashlib
import http.client
import http.server
import io
import os
import pickle
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from teachers import zoo
from teachers.checkpoint import load_state
from teachers.zoo import ZOO, Entry, ZooError, default_cache, fetch, find

NAME = "pointrend_test_model"


class Server(http.server.ThreadingHTTPServer):
    """Serves one file, in the way that `mode` says, and notes what was asked."""

    data = b""
    mode = ""
    ranges: list[str | None]
    address = ""


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.ranges.append(asked)
        mode, data = self.server.mode, self.server.data
        if mode == "missing":
            self.send_error(404, "Not Found")
        elif mode.startswith(("http", "file")):
            self.head(302, {"Location": mode, "Content-Length": "0"})
        elif asked and mode != "whole only":
            self.part(int(asked.removeprefix("bytes=").removesuffix("-")))
        else:
            self.head(200, {} if mode == "no length" else {"Content-Length": str(len(data))})
            self.wfile.write(data[: len(data) // 2] if mode == "cut" else data)

    def part(self, start: int) -> None:
        data = self.server.data
        if start >= len(data):
            self.head(416, {"Content-Range": f"bytes */{len(data)}", "Content-Length": "0"})
            return
        place = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self.head(206, {"Content-Range": place, "Content-Length": str(len(data) - start)})
        self.wfile.write(data[start:])

    def head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Quiet."""


def model(seed: int = 0) -> bytes:
    """A zoo file: a protocol-2 pickle of named arrays."""
    weight = np.random.default_rng(seed).standard_normal(5000).astype(np.float32)
    return pickle.dumps({"model": {"weight": weight}, "__author__": "Detectron2 Model Zoo"}, 2)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server(("127.0.0.1", 0), Handler) as made:
        made.ranges, made.address = [], f"http://127.0.0.1:{made.server_port}/zoo"
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def publish(server: Server, monkeypatch: pytest.MonkeyPatch, data: bytes, md5: str | None = None) -> str:
    """Put bytes on the server and their entry into the zoo; the name of the file."""
    server.data = data
    file = f"model_final_{(md5 or hashlib.md5(data).hexdigest())[:6]}.pkl"
    monkeypatch.setitem(ZOO, NAME, Entry(path=f"Tests/{NAME}/1/{file}", score="none"))
    return file


def files(cache: Path) -> set[str]:
    return {str(p.relative_to(cache)) for p in cache.rglob("*") if p.is_file()}


# --- Good downloads ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["", "no length"])
def test_a_fetched_file_is_the_published_one_with_its_digest_beside_it(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mode: str
) -> None:
    file, server.mode = publish(server, monkeypatch, model()), mode
    told: list[str] = []
    path = fetch(NAME, cache=tmp_path, base_url=server.address, report=told.append)
    assert path == tmp_path / NAME / file
    assert path.read_bytes() == server.data
    digest = hashlib.sha256(server.data).hexdigest()
    assert path.with_name(f"{file}.sha256").read_text() == f"{digest}  {file}\n"
    assert files(tmp_path) == {f"{NAME}/{file}", f"{NAME}/{file}.sha256"}
    assert load_state(path)["weight"].shape == (5000,)
    assert told[0].startswith(f"downloading {server.address}/Tests/{NAME}/1/{file}")


def test_a_cached_file_is_not_fetched_again(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    publish(server, monkeypatch, model())
    first = fetch(NAME, cache=tmp_path, base_url=server.address)
    server.mode = "missing"
    digest = hashlib.sha256(server.data).hexdigest()
    assert fetch(NAME, cache=tmp_path, base_url=server.address) == first
    assert fetch(NAME, cache=tmp_path, base_url=server.address, sha256=digest) == first
    assert server.ranges == [None]


def test_a_zoo_file_of_the_reference_is_fetched_and_read(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, goldens: Path
) -> None:
    golden = goldens / "pointrend" / "zoo_format" / "model_final_c7f38d.pkl"
    assert publish(server, monkeypatch, golden.read_bytes()) == golden.name
    path = fetch(NAME, cache=tmp_path, base_url=server.address)
    assert load_state(path).keys() == load_state(golden).keys()


@pytest.mark.parametrize("mode", ["", "whole only"])
def test_an_interrupted_download_keeps_its_part_and_goes_on_from_there_if_the_server_can(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mode: str
) -> None:
    file, server.mode = publish(server, monkeypatch, model()), "cut"
    half = len(server.data) // 2
    with pytest.raises(ZooError, match=f"ended after {half} of {len(server.data)} bytes .*--teacher"):
        fetch(NAME, cache=tmp_path, base_url=server.address)
    assert files(tmp_path) == {f"{NAME}/.partial/{file}"}
    server.mode = mode
    path = fetch(NAME, cache=tmp_path, base_url=server.address)
    assert path.read_bytes() == server.data
    assert server.ranges == [None, f"bytes={half}-"]
    assert files(tmp_path) == {f"{NAME}/{file}", f"{NAME}/{file}.sha256"}


@pytest.mark.parametrize("left", ["whole", "too long", "other", "other and long"])
def test_whatever_is_left_of_an_earlier_download_the_published_file_results(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, left: str
) -> None:
    file = publish(server, monkeypatch, model())
    partial = tmp_path / NAME / ".partial" / file
    partial.parent.mkdir(parents=True)
    kinds = {
        "whole": server.data,
        "too long": server.data + b"more",
        "other": b"x" * 99,
        "other and long": b"x" * len(server.data),
    }
    partial.write_bytes(kinds[left])
    path = fetch(NAME, cache=tmp_path, base_url=server.address)
    assert path.read_bytes() == server.data
    assert files(tmp_path) == {f"{NAME}/{file}", f"{NAME}/{file}.sha256"}
    assert (None in server.ranges) == (left != "whole")


def test_a_redirect_within_http_is_followed(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = publish(server, monkeypatch, model())
    with Server(("127.0.0.1", 0), Handler) as second:
        second.ranges, second.mode = [], f"{server.address}/Tests/elsewhere"
        thread = threading.Thread(target=second.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            path = fetch(NAME, cache=tmp_path, base_url=f"http://127.0.0.1:{second.server_port}")
        finally:
            second.shutdown()
            thread.join()
    assert path.read_bytes() == server.data
    assert path.name == file


# --- Refused downloads -------------------------------------------------------------------------------------------


def test_a_file_with_another_md5_than_its_name_is_removed(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    publish(server, monkeypatch, model(), md5="000000")
    with pytest.raises(ZooError, match=r"its MD5 must start with 000000, got .*it was removed"):
        fetch(NAME, cache=tmp_path, base_url=server.address)
    assert files(tmp_path) == set()


def test_a_file_with_another_sha256_than_asked_for_is_removed_before_and_after_it_is_cached(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    publish(server, monkeypatch, model())
    found = hashlib.sha256(server.data).hexdigest()
    for _ in range(2):
        with pytest.raises(ZooError, match=f"its SHA-256 must be {'0' * 64}, got {found}; it was removed"):
            fetch(NAME, cache=tmp_path, base_url=server.address, sha256="0" * 64)
        assert files(tmp_path) == set()
        fetch(NAME, cache=tmp_path, base_url=server.address, sha256=found)


def test_a_known_digest_of_the_zoo_holds_without_being_asked_for(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    publish(server, monkeypatch, model())
    monkeypatch.setitem(ZOO, NAME, Entry(path=ZOO[NAME].path, score="none", sha256="0" * 64))
    with pytest.raises(ZooError, match="its SHA-256 must be 0000"):
        fetch(NAME, cache=tmp_path, base_url=server.address)


class Evil:
    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.witness),)


def test_a_hostile_file_is_removed_and_runs_nothing(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    witness, cache = tmp_path / "witness", tmp_path / "cache"
    publish(server, monkeypatch, pickle.dumps({"model": {"weight": Evil(witness)}}, 2))
    with pytest.raises(ZooError, match=r"mkdir.*refused, nothing was run; it was removed"):
        fetch(NAME, cache=cache, base_url=server.address)
    assert files(cache) == set()
    assert not witness.exists()


@pytest.mark.parametrize("mode", ["", "no length"])
def test_a_file_above_the_limit_is_refused_before_or_while_it_comes(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mode: str
) -> None:
    file, server.mode = publish(server, monkeypatch, model()), mode
    with pytest.raises(ZooError, match="has more than the 1000 bytes allowed: refused"):
        fetch(NAME, cache=tmp_path, base_url=server.address, max_bytes=1000)
    left = tmp_path / NAME / ".partial" / file
    assert left.stat().st_size == 0


def test_an_absent_file_is_named_with_the_reason_and_the_remedy(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file, server.mode = publish(server, monkeypatch, model()), "missing"
    url = f"{server.address}/Tests/{NAME}/1/{file}"
    with pytest.raises(ZooError) as error:
        fetch(NAME, cache=tmp_path, base_url=server.address)
    assert str(error.value) == (
        f"{url}: cannot be downloaded: the server says 404 Not Found; "
        "try again, or download it elsewhere and give the file with --teacher"
    )


def test_without_a_network_one_line_names_address_reason_and_remedy(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    publish(server, monkeypatch, model())
    with pytest.raises(ZooError, match=r"^http://127\.0\.0\.1:1/Tests/[^\n]*: [^\n]*refused; [^\n]*--teacher$"):
        fetch(NAME, cache=tmp_path, base_url="http://127.0.0.1:1")


@pytest.mark.parametrize("scheme", ["file", "http-to-self"])
def test_a_redirect_to_a_file_or_in_a_circle_is_refused(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, scheme: str
) -> None:
    secret = tmp_path / "secret.pkl"
    secret.write_bytes(model())
    publish(server, monkeypatch, model())
    server.mode = secret.as_uri() if scheme == "file" else f"{server.address}/again"
    with pytest.raises(ZooError, match=r"cannot be downloaded: .*(not allowed|infinite loop)"):
        fetch(NAME, cache=tmp_path / "cache", base_url=server.address)


def test_a_redirect_that_gives_up_encryption_is_refused() -> None:
    request = urllib.request.Request("https://example.org/model")
    with pytest.raises(urllib.error.URLError, match=r"redirects to http://example.org/model, which is refused"):
        zoo._Redirect().redirect_request(
            request, io.BytesIO(), 302, "Found", http.client.HTTPMessage(), "http://example.org/model"
        )


def test_two_processes_do_not_write_one_file(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    partial = tmp_path / NAME / ".partial" / publish(server, monkeypatch, model())
    partial.parent.mkdir(parents=True)
    with partial.open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(ZooError, match="another process is downloading it"):
            fetch(NAME, cache=tmp_path, base_url=server.address)
    assert server.ranges == []


# --- The cache ---------------------------------------------------------------------------------------------------


def test_a_cached_file_that_changed_is_named_and_refused_until_it_is_deleted(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    publish(server, monkeypatch, model())
    path = fetch(NAME, cache=tmp_path, base_url=server.address)
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(bytes(data))
    for _ in range(2):
        with pytest.raises(ZooError, match=f"{re.escape(str(path))}: has changed since .*delete both"):
            fetch(NAME, cache=tmp_path, base_url=server.address)
    path.unlink()
    assert fetch(NAME, cache=tmp_path, base_url=server.address).read_bytes() == server.data


@pytest.mark.parametrize("record", ["", "nonsense", f"{'0' * 64}  other.pkl\n"])
def test_a_record_that_says_nothing_of_the_file_is_refused(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, record: str
) -> None:
    publish(server, monkeypatch, model())
    path = fetch(NAME, cache=tmp_path, base_url=server.address)
    path.with_name(f"{path.name}.sha256").write_text(record)
    with pytest.raises(ZooError, match="has changed since it was downloaded"):
        fetch(NAME, cache=tmp_path, base_url=server.address)


def test_a_file_put_there_by_hand_is_checked_and_then_recorded(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = publish(server, monkeypatch, model())
    path = tmp_path / NAME / file
    path.parent.mkdir()
    path.write_bytes(server.data)
    assert fetch(NAME, cache=tmp_path, base_url=server.address) == path
    assert path.with_name(f"{file}.sha256").is_file()
    path.with_name(f"{file}.sha256").unlink()
    path.write_bytes(server.data[:-1])
    with pytest.raises(ZooError, match="its MD5 must start with"):
        fetch(NAME, cache=tmp_path, base_url=server.address)
    assert server.ranges == []


def test_a_cache_that_cannot_be_written_is_named(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    publish(server, monkeypatch, model())
    (tmp_path / "cache").write_text("a file, no folder")
    with pytest.raises(ZooError, match=r"cache/.*: cannot be read or written: "):
        fetch(NAME, cache=tmp_path / "cache", base_url=server.address)


def test_the_default_cache_is_that_of_the_desktop_standard() -> None:
    assert default_cache({"XDG_CACHE_HOME": "/somewhere"}) == Path("/somewhere/curate")
    for unset in ({}, {"XDG_CACHE_HOME": ""}, {"XDG_CACHE_HOME": "relative"}):
        assert default_cache(unset) == Path.home() / ".cache" / "curate"


# --- The table ---------------------------------------------------------------------------------------------------


def test_every_entry_lies_in_a_folder_of_its_name_and_carries_the_digits_of_its_md5() -> None:
    assert len(ZOO) == 6
    for name, entry in ZOO.items():
        kind, folder, number, file = entry.path.split("/")
        assert kind == ("SemanticSegmentation" if "semantic" in name else "InstanceSegmentation")
        assert folder == name
        assert number.isdecimal()
        assert re.fullmatch(r"model_final_[0-9a-f]{6}\.pkl", file)
        assert find(name) is entry


def test_an_unknown_name_is_answered_with_the_nearest_and_with_all() -> None:
    with pytest.raises(ZooError) as error:
        fetch("pointrend_rcnn_R50_FPN_3x_coco")
    assert "did you mean 'pointrend_rcnn_R_50_FPN_3x_coco'?" in str(error.value)
    assert all(name in str(error.value) for name in ZOO)
    with pytest.raises(ZooError, match=r"has no model '\.\./\.\./etc'; it has"):
        fetch("../../etc")


@pytest.mark.parametrize(
    ("more", "message"),
    [({"sha256": "ABC"}, "64 lower-case hexadecimal"), ({"base_url": "file:///tmp"}, "must start with http")],
)
def test_impossible_arguments_are_refused(tmp_path: Path, more: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fetch("pointrend_rcnn_R_50_FPN_3x_coco", cache=tmp_path, **more)  # type: ignore[arg-type]
    assert files(tmp_path) == set()
