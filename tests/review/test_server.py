"""The review server as a whole: stale releases, read-only, names, faults of the disk, its start and its end."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from manifests.release import RELEASE_FILE, fingerprint
from review.log import ReviewLog
from review.server import ServeError, build_app, running, serve
from tests.review import releases
from tests.review.asked import BY_ID, SAMPLES, good, refused, rows_of, until
from tests.review.client import Client


def test_when_the_release_is_exchanged_or_removed_nothing_of_it_is_told_or_decided(ada: Client, folder: Path) -> None:
    path, one = folder / RELEASE_FILE, min(BY_ID)
    data = path.read_bytes()
    asked = [f"/api/sample/{one}", "/api/page", "/api/overview", "/api/signoff", f"/thumb/{one}", "/api/compare?with=0"]
    path.unlink()
    for address in asked:
        refused(ada.get(address), 409, "removed")
        assert ada.get(address).json["stale"] is True
    path.write_bytes(data.replace(b'"people"', b'"peopla"'))
    for address in asked:
        refused(ada.get(address), 409, "exchanged")
    refused(ada.post("/api/decide", ids=[one], verdict="approve", reasons=[]), 409, "exchanged")
    assert "exchanged" in good(ada.get("/api/session"))["stale"]
    assert not (folder.parent.parent / "reviews").exists()
    path.unlink()
    path.write_bytes(data)  # the same bytes in another file
    assert good(ada.get("/api/session"))["stale"] is None
    assert good(ada.get("/api/page"))["total"] == len(SAMPLES)


def test_a_release_made_meanwhile_is_told(ada: Client, folder: Path) -> None:
    assert good(ada.get("/api/session"))["newer"] == []
    digest = fingerprint((folder / RELEASE_FILE).read_bytes())
    child = releases.write(folder.parent.parent, SAMPLES[:20], parents=(digest,))
    grandchild = releases.write(
        folder.parent.parent, SAMPLES[:10], parents=(fingerprint((child / RELEASE_FILE).read_bytes()),)
    )
    newer = {one["name"] for one in good(ada.get("/api/session"))["newer"]}
    assert newer == {child.name, grandchild.name}


def test_read_only_refuses_every_change_and_says_why(looking: Client, written: Path) -> None:
    one = min(BY_ID)
    changes: dict[str, dict[str, Any]] = {
        "/api/decide": {"ids": [one], "verdict": "approve", "reasons": []},
        "/api/bulk": {"filter": {}, "verdict": "approve", "reasons": [], "expect": len(SAMPLES)},
        "/api/comment": {"id": one, "text": "x"},
        "/api/tasks": {"kind": "audit", "size": 3, "title": "x"},
        "/api/tasks/0/result": {"id": one, "verdict": "good", "reasons": []},
        "/api/signoff": {"name": "Ada", "checklist": {}, "conditions": "x"},
        "/api/withdraw": {"reasons": []},
    }
    for address, body in changes.items():
        refused(looking.post(address, **body), 403, "--read-only")
    assert not (written.parent.parent / "reviews").exists()


@pytest.mark.parametrize("name", ["", "   ", "a" * 81, "a\nb", "a\x00b", "a\x1b[31m", "\u202eevil", 5, None, ["Ada"]])
def test_a_name_that_cannot_be_kept_is_refused(url: str, folder: Path, name: Any) -> None:
    refused(Client.of(url).post("/api/session", reviewer=name), 400, "name")
    if isinstance(name, str):
        one = min(BY_ID)
        refused(Client.of(url, name).post("/api/decide", ids=[one], verdict="approve", reasons=[]), 400, "name")
    assert ReviewLog.open(folder).events() == ()


def test_a_name_is_stripped_and_needed_for_a_change_alone(url: str) -> None:
    nobody, one = Client.of(url), min(BY_ID)
    assert good(nobody.post("/api/session", reviewer="  Ada  "))["reviewer"] == "Ada"
    refused(nobody.post("/api/decide", ids=[one], verdict="approve", reasons=[]), 400, "X-Reviewer")
    assert nobody.get("/api/tasks").status == 200
    refused(Client.of(url, "\xff").ask("GET", "/api/tasks", {**nobody.headers(), "X-Reviewer": "%ff"}), 400, "UTF-8")


def test_the_name_of_the_command_holds_where_the_browser_gives_none(folder: Path) -> None:
    with running(folder, reviewer=" Ada ") as url:
        client = Client.of(url)
        assert good(client.get("/api/session"))["reviewer"] == "Ada"
        good(client.post("/api/decide", ids=[min(BY_ID)], verdict="approve", reasons=[]))
    assert ReviewLog.open(folder).events()[0].reviewer.name == "Ada"
    with pytest.raises(ServeError, match="name"), running(folder, reviewer="a\nb"):
        pass


def test_what_breaks_the_rules_of_an_event_is_refused_and_nothing_is_recorded(ada: Client, folder: Path) -> None:
    one = min(BY_ID)
    refused(ada.post("/api/decide", ids=[one], verdict="maybe", reasons=[]), 400, "verdict must be one of")
    refused(ada.post("/api/decide", ids=[one], verdict="approve", reasons=["x" * 201]), 400, "reasons")
    refused(ada.post("/api/decide", ids=[one], verdict="approve", reasons=["x"] * 21), 400, "reasons")
    refused(ada.post("/api/decide", ids=[one], verdict="approve", reasons=[1]), 400, "reasons")
    refused(ada.post("/api/decide", ids=["0" * 32], verdict="approve", reasons=[]), 404, "no sample")
    refused(ada.post("/api/decide", ids=[one] * 1001, verdict="approve", reasons=[]), 400, "1..1000")
    refused(ada.post("/api/decide", ids=[one], verdict="approve", reasons=[], adjudicates="yes"), 400, "adjudicates")
    refused(ada.post("/api/bulk", filter={}, verdict="approve", reasons=[], expect=True), 400, "expect")
    assert ReviewLog.open(folder).events() == ()


def test_when_the_disk_is_full_it_is_told_and_nothing_is_recorded(
    ada: Client, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = min(BY_ID)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", full)
        refused(ada.post("/api/decide", ids=[one], verdict="approve", reasons=[]), 507, "No space left")
    assert ReviewLog.open(folder).events() == ()
    assert good(ada.post("/api/decide", ids=[one], verdict="approve", reasons=[]))["seq"] == 0


def test_a_log_that_is_no_folder_is_told(ada: Client, folder: Path) -> None:
    (folder.parent.parent / "reviews").write_text("a file is in the way")
    refused(ada.post("/api/decide", ids=[min(BY_ID)], verdict="approve", reasons=[]), 409, "cannot be listed")


def test_a_damaged_shard_spoils_its_own_pictures_alone(folder: Path) -> None:
    rows = rows_of(folder)
    path = next((folder / "shards" / "hold").glob("*.parquet"))
    path.write_bytes(path.read_bytes()[:-20])
    with running(folder) as url:
        client = Client.of(url)
        for one, row in rows.items():
            if row["shard"] is not None:
                answer = client.get(f"/thumb/{one}", side="32")
                if row["split"] == "hold":
                    refused(answer, 409, path.name)
                else:
                    assert answer.status == 200


def test_the_server_prints_its_address_and_ends_well_with_ctrl_c(folder: Path) -> None:
    code = "import sys, pathlib; from review.server import serve; serve(pathlib.Path(sys.argv[1]), say=print)"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url.startswith("http://127.0.0.1:")
        client = Client.of(url, "Ada")
        assert good(until(lambda: client.get("/api/session"), lambda answer: answer.status == 200))["name"]
        assert good(client.post("/api/integrity"))["state"] == "running"
        process.send_signal(signal.SIGINT)
        out, told = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0
    assert (out, told) == ("", "")


def test_a_browser_is_opened_without_the_token_on_its_command_line(folder: Path) -> None:
    said: list[str] = []
    opened: list[Path] = []

    def browser(address: str) -> None:
        path = Path(address.removeprefix("file://"))
        opened.append(path)
        assert Client.of(said[0]).token not in address
        assert f"url={said[0]}" in path.read_text()
        assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
        raise KeyboardInterrupt

    serve(folder, open_browser=browser, say=said.append)
    assert len(opened) == 1
    assert not opened[0].parent.exists()


def test_a_check_of_the_bytes_has_a_limit_of_memory() -> None:
    code = (
        "import resource, review.integrity as i\n"
        "i.check = lambda _: {'limit': resource.getrlimit(resource.RLIMIT_AS)[0]}\n"
        "i.main(['.'])"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.read()) == {"limit": 8 << 30}


def test_a_port_that_is_taken_or_not_allowed_is_told(folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ServeError, match=rf"port {port} of 127.0.0.1 cannot be used .*choose another"):
            serve(folder, port=port, say=print)
    for port in (80, -1, 70_000):
        with pytest.raises(ServeError, match="port must be"):
            serve(folder, port=port, say=print)


def test_only_this_machine_reaches_the_server(url: str) -> None:
    client = Client.of(url)
    others = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)} - {"127.0.0.1"}
    for address in [*others, "127.0.0.2"]:
        with pytest.raises(OSError, match="refused"), socket.create_connection((address, client.port), timeout=5):
            pass


def test_a_folder_without_a_release_and_a_weak_token_are_refused(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(ValueError, match="no release is here"):
        build_app(tmp_path, token="x" * 32)
    with pytest.raises(ValueError, match="token must have at least 16"):
        build_app(folder, token="x").build_middleware_stack()


def test_every_start_has_its_own_token(folder: Path) -> None:
    tokens = set()
    for _ in range(2):
        with running(folder) as url:
            tokens.add(Client.of(url).token)
    assert len(tokens) == 2
    assert min(map(len, tokens)) >= 40


def test_nothing_of_a_sample_s_source_is_logged(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even where the server itself is at fault."""
    from review.catalog import Catalog

    source = f"/videos/{'secret'}-person.mp4"

    def fault(*_: object, **__: object) -> None:
        raise RuntimeError(source)

    monkeypatch.setattr(Catalog, "page", fault)
    with running(folder) as url:
        answer = Client.of(url).get("/api/page", filter={"group": "secret-person"})
    assert answer.status == 500
    assert b"secret" not in answer.body
    assert "RuntimeError" in caplog.text
    assert "fault" in caplog.text  # where it was raised
    assert "secret" not in caplog.text


def test_hostile_texts_of_the_release_stay_texts(tmp_path: Path) -> None:
    hostile = ["</script><img src=x onerror=alert(1)>", "=cmd|' /C calc'!A0", "\u202e\u0000\n", "x" * 100_000]
    samples = [
        releases.Sample(
            number=number,
            image=SAMPLES[number].image,
            mask=SAMPLES[number].mask,
            attributes={"lighting_level": text},
            reasons=(text[:50],),
            row={"licence": text, "source_uri": text, "group_id": f"g{number}"},
        )
        for number, text in enumerate(hostile)
    ]
    folder = releases.write(tmp_path, samples)
    with running(folder) as url:
        client = Client.of(url, "Ada")
        for address in ("overview", "coverage", "bias", "reasons", "page", "rights", "leakage", "clusters"):
            answer = client.get(f"/api/{address}")
            assert answer.status == 200, answer.body
            assert answer.headers["content-type"] == "application/json"
            assert len(answer.body) < 100_000
        for sample, text in zip(samples, hostile, strict=True):
            told = good(client.get(f"/api/sample/{sample.id}"))
            assert len(json.dumps(told)) < 20_000
            if len(text) < 200:
                assert told["identity"]["source_uri"] == text
            chosen = (
                good(client.get("/api/page", filter={"attr": {"lighting_level": [text]}})) if len(text) < 200 else None
            )
            assert chosen is None or [one["id"] for one in chosen["samples"]] == [sample.id]


def test_times_are_those_of_utc(ada: Client) -> None:
    one = min(BY_ID)
    good(ada.post("/api/decide", ids=[one], verdict="approve", reasons=[]))
    at = good(ada.get(f"/api/sample/{one}"))["history"][0]["at"]
    assert at.endswith("Z")
    assert abs((datetime.fromisoformat(at) - datetime.now(UTC)).total_seconds()) < 300
