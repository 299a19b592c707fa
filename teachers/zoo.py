"""PointRend models that their authors publish, fetched once into a cache and checked before anything trusts them.

Only the first six digits of each file's MD5 are published, in its name. So a file is read once with the safe reader,
its SHA-256 is written beside it, and a cached file must agree with that record ever after.
"""

import difflib
import fcntl
import http.client
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO
from urllib.parse import urlsplit

from teachers.checkpoint import MAX_BYTES, CheckpointError, load_state
from training.files import sha256_file, write_atomically

BASE_URL = "https://dl.fbaipublicfiles.com/detectron2/PointRend"
_CHUNK = 1 << 20
_SECONDS_SILENT = 60.0
_PARTIAL = ".partial"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_RECORD = re.compile(r"([0-9a-f]{64}) [ *](.+)\n?")
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)")

Report = Callable[[str], None]


class ZooError(RuntimeError):
    """A published model is unknown, cannot be fetched, or is not what it was."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One published model.

    Attributes:
        path: Where it lies below `BASE_URL`; the name ends in the first six digits of the file's MD5.
        score: What its authors measured.
        sha256: Digest of the file, where one is known.
    """

    path: str
    score: str
    sha256: str | None = None


ZOO: dict[str, Entry] = {
    "pointrend_semantic_R_101_FPN_1x_cityscapes": Entry(
        path="SemanticSegmentation/pointrend_semantic_R_101_FPN_1x_cityscapes/202576688/model_final_cf6ac1.pkl",
        score="78.9 mIoU on Cityscapes",
    ),
    "pointrend_rcnn_R_50_FPN_1x_coco": Entry(
        path="InstanceSegmentation/pointrend_rcnn_R_50_FPN_1x_coco/164254221/model_final_736f5a.pkl",
        score="36.2 mask AP on COCO",
    ),
    "pointrend_rcnn_R_50_FPN_3x_coco": Entry(
        path="InstanceSegmentation/pointrend_rcnn_R_50_FPN_3x_coco/164955410/model_final_edd263.pkl",
        score="38.3 mask AP on COCO",
    ),
    "pointrend_rcnn_R_101_FPN_3x_coco": Entry(
        path="InstanceSegmentation/pointrend_rcnn_R_101_FPN_3x_coco/28119983/model_final_3f4d2a.pkl",
        score="40.1 mask AP on COCO",
    ),
    "pointrend_rcnn_X_101_32x8d_FPN_3x_coco": Entry(
        path="InstanceSegmentation/pointrend_rcnn_X_101_32x8d_FPN_3x_coco/28119989/model_final_ba17b9.pkl",
        score="41.1 mask AP on COCO",
    ),
    "pointrend_rcnn_R_50_FPN_1x_cityscapes": Entry(
        path="InstanceSegmentation/pointrend_rcnn_R_50_FPN_1x_cityscapes/164255101/model_final_115bfb.pkl",
        score="35.9 mask AP on Cityscapes",
    ),
}
"""Short name -> model; published in Detectron2's projects/PointRend/README.md."""


def default_cache(environment: Mapping[str, str] = os.environ) -> Path:
    """`$XDG_CACHE_HOME/curate`, or `~/.cache/curate` where that is unset or relative (XDG Base Directory)."""
    given = Path(environment.get("XDG_CACHE_HOME", ""))
    return (given if given.is_absolute() else Path.home() / ".cache") / "curate"


def find(name: str) -> Entry:
    """The model of a short name.

    Raises:
        ZooError: There is none; the nearest name and all names are given.
    """
    if name in ZOO:
        return ZOO[name]
    near = difflib.get_close_matches(name, ZOO, n=1, cutoff=0.5)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise ZooError(f"the zoo has no model {name!r}{hint}; it has {', '.join(ZOO)}")


def fetch(
    name: str,
    *,
    cache: Path | None = None,
    sha256: str | None = None,
    report: Report | None = None,
    base_url: str = BASE_URL,
    max_bytes: int = MAX_BYTES,
) -> Path:
    """The file of a published model, downloaded unless it is cached; an interrupted download goes on where it stopped.

    A file is accepted whole, with the MD5 digits of its name, the SHA-256 that is asked for, and nothing but named
    numbers inside (`teachers.checkpoint.load_state`); otherwise it is removed. Its SHA-256 is recorded beside it as
    `<file>.sha256`, in the format of sha256sum, and a cached file must agree with that.

    Args:
        name: A key of `ZOO`.
        cache: Folder of downloads, made if absent; by default `default_cache()`.
        sha256: The digest that the file must have, 64 lower-case hexadecimal digits.
        report: Is told of the start, every tenth, and the end of a download.
        base_url: Where the zoo is, http or https.
        max_bytes: A larger file is refused.

    Raises:
        ZooError: See the message; it names what to do.
        ValueError: `sha256` is no digest, or `base_url` is neither http nor https.
    """
    entry = find(name)
    wanted = sha256 or entry.sha256
    if wanted is not None and _SHA256.fullmatch(wanted) is None:
        raise ValueError(f"sha256 must be 64 lower-case hexadecimal digits, got {wanted!r}")
    if urlsplit(base_url).scheme not in ("http", "https"):
        raise ValueError(f"base_url must start with http:// or https://, got {base_url!r}")
    target = (cache or default_cache()) / name / Path(entry.path).name
    download = _Download(f"{base_url.rstrip('/')}/{entry.path}", max_bytes, report or _silent)
    try:
        if target.is_file():
            _check_cached(target, wanted)
        else:
            _fetch(download, target, wanted)
    except OSError as error:
        raise ZooError(f"{target}: cannot be read or written: {error.strerror or error}") from error
    return target


def _silent(_: str) -> None:
    """Nobody asked."""


# --- The cache ---------------------------------------------------------------------------------------------------


def _check_cached(target: Path, wanted: str | None) -> None:
    """Refuse a cached file that differs from its record, or from the digest asked for (that one is removed)."""
    record = _record(target)
    found = sha256_file(target)
    if record.is_file():
        noted = _RECORD.fullmatch(record.read_text("utf-8", "replace"))
        if noted is None or noted[1] != found or noted[2] != target.name:
            raise ZooError(
                f"{target}: has changed since it was downloaded: its SHA-256 is {found}, but {record.name} says "
                f"{noted[1] if noted else 'nothing readable'}; delete both to download it again"
            )
        _check_digest(target, found, wanted)
    else:  # put there by hand, or a download was stopped at its last step
        _check_digest(target, found, wanted)
        _check_content(target)
        _write_record(target, found)


def _check_digest(path: Path, found: str, wanted: str | None) -> None:
    if wanted is not None and found != wanted:
        path.unlink()
        _record(path).unlink(missing_ok=True)
        raise ZooError(f"{path}: its SHA-256 must be {wanted}, got {found}; it was removed")


def _check_content(path: Path) -> None:
    try:
        load_state(path)
    except CheckpointError as error:
        path.unlink()
        raise ZooError(f"{error}; it was removed") from error


def _record(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _write_record(target: Path, sha256: str) -> None:
    write_atomically(_record(target), f"{sha256}  {target.name}\n".encode())


# --- The download ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class _Body:
    """An answer: its bytes, where in the file they start, and how long the file is (None: not said)."""

    stream: Any
    start: int
    total: int | None


@dataclass(frozen=True, slots=True)
class _Download:
    url: str
    max_bytes: int
    report: Report


def _fetch(download: _Download, target: Path, wanted: str | None) -> None:
    """Fill `.partial/<name>`, check it, and move it to its place; the name stays, since it carries the MD5."""
    partial = target.parent / _PARTIAL / target.name
    partial.parent.mkdir(parents=True, exist_ok=True)
    with _locked(partial) as file:
        resumed = _receive(download, file)
        try:
            _check_received(partial, wanted)
        except ZooError:
            if not resumed:
                raise
            download.report(f"{partial.name}: what was resumed does not fit together; downloading it whole")
            with _locked(partial) as again:
                _receive(download, again)
            _check_received(partial, wanted)
        _write_record(target, sha256_file(partial))
        partial.replace(target)
        _sync(target.parent)
    with suppress(OSError):  # not empty: something else is there
        partial.parent.rmdir()


def _check_received(partial: Path, wanted: str | None) -> None:
    if wanted is not None:
        _check_digest(partial, sha256_file(partial), wanted)
    _check_content(partial)


@contextmanager
def _locked(partial: Path) -> Iterator[BinaryIO]:
    with partial.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ZooError(f"{partial}: another process is downloading it; wait for that one") from error
        if not partial.exists() or not os.path.samestat(os.fstat(file.fileno()), partial.stat()):
            raise ZooError(f"{partial}: another process has just finished it; try again")
        yield file


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _receive(download: _Download, file: BinaryIO) -> bool:
    """Append to a file what it lacks; whether it held a part before.

    Raises:
        ZooError: No network, an error of the server, too much or too little; what came is kept for the next time.
    """
    url, had = download.url, file.seek(0, os.SEEK_END)
    try:
        body = _open(url, had)
        if body is None:
            return True
        with body.stream:
            file.truncate(body.start)
            _copy(download, body, file)
    except urllib.error.HTTPError as error:
        error.close()
        raise _unreachable(url, f"the server says {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        raise _unreachable(url, str(error.reason)) from error
    except (http.client.HTTPException, TimeoutError, ConnectionError) as error:
        raise _unreachable(url, str(error) or type(error).__name__) from error
    return body.start > 0


def _chunks(url: str, stream: Any) -> Iterator[bytes]:
    try:
        while chunk := stream.read(_CHUNK):
            yield chunk
    except OSError as error:  # not of the file that is written: that one is the caller's
        raise _unreachable(url, error.strerror or str(error)) from error


def _unreachable(url: str, reason: str) -> ZooError:
    return ZooError(
        f"{url}: cannot be downloaded: {reason}; try again, or download it elsewhere and give the file with --teacher"
    )


def _copy(download: _Download, body: _Body, file: BinaryIO) -> None:
    done, tenth, total = body.start, 0, body.total
    _check_size(download, total or 0, file)
    size = f" of {total / 1e6:.1f} MB" if total else ""
    download.report(f"downloading {download.url}{size}" + (f", from {done / 1e6:.1f} MB on" if done else ""))
    for chunk in _chunks(download.url, body.stream):
        done += len(chunk)
        _check_size(download, done, file)
        file.write(chunk)
        if total and done * 10 // total > tenth:
            tenth = done * 10 // total
            download.report(f"{Path(download.url).name}: {done / 1e6:.1f}{size}")
    file.flush()
    os.fsync(file.fileno())
    if total is not None and done != total:
        raise _unreachable(download.url, f"the connection ended after {done} of {total} bytes (which are kept)")


def _check_size(download: _Download, size: int, file: BinaryIO) -> None:
    if size > download.max_bytes:
        file.truncate(0)
        raise ZooError(f"{download.url}: has more than the {download.max_bytes} bytes allowed: refused")


def _open(url: str, had: int) -> _Body | None:
    """The answer to a request for all but the first `had` bytes; None where there are no more than these."""
    request = urllib.request.Request(url, headers={"Accept-Encoding": "identity", "User-Agent": "curate"})
    if had:
        request.add_header("Range", f"bytes={had}-")
    try:
        response = _opener().open(request, timeout=_SECONDS_SILENT)
    except urllib.error.HTTPError as error:
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or not had:
            raise
        error.close()
        return None if error.headers.get("Content-Range") == f"bytes */{had}" else _open(url, 0)
    if response.status == http.HTTPStatus.PARTIAL_CONTENT:
        span = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if span is not None and int(span[1]) == had:
            return _Body(stream=response, start=had, total=int(span[2]))
        response.close()
        return _open(url, 0)
    length = response.headers.get("Content-Length", "")
    return _Body(stream=response, start=0, total=int(length) if length.isdecimal() else None)


class _Redirect(urllib.request.HTTPRedirectHandler):
    """Follows redirects that stay with http(s) and do not give up encryption."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        old, new = urlsplit(req.full_url).scheme, urlsplit(newurl).scheme
        if new != "https" and (new, old) != ("http", "http"):
            raise urllib.error.URLError(f"it redirects to {newurl}, which is refused")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    """An opener for http and https alone; urllib's own would open file:, ftp: and data:, too."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        _Redirect(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener
