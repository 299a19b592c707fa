"""The probe: every source is opened once; its frames are counted, sampled, hashed and described.

One row per candidate frame, no pixels: whoever needs them decodes the source again and checks the content hash.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, BinaryIO, ClassVar

import pyarrow as pa

from manifests.erasures import Suppression
from pipeline import storage
from pipeline.attributes import COMPUTED, computed_attributes
from pipeline.errors import CurateError
from pipeline.frames import MEDIA_SUFFIXES, Fault, Frame, ScanConfig, Tally, content_sha256, dhash64, scan, sniff
from pipeline.motion import GRID_BYTES, encode_grid
from pipeline.stage import Output, Span, Task, read_span
from pipeline.suppressed import Suppressed

PROBED = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("content_sha256", pa.binary(32), nullable=False),
        pa.field("source_uri", pa.string(), nullable=False),
        pa.field("source_sha256", pa.binary(32), nullable=False),
        pa.field("media_kind", pa.string(), nullable=False),
        pa.field("frame_index", pa.int32(), nullable=False),
        pa.field("frame_pts_us", pa.int64()),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("exif_orientation", pa.int8(), nullable=False),
        pa.field("scene", pa.int32(), nullable=False),
        pa.field("dhash64", pa.uint64(), nullable=False),
        *(pa.field(name, pa.string()) for name in sorted(COMPUTED)),
        pa.field("motion_grid", pa.binary(GRID_BYTES)),
    ]
)
_CHUNK = 1 << 20
ERASED = "Erased"
"""The error of what an erasure keeps out; its source is not named, or the quarantine would bring the name back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeConfig:
    """Settings of the probe.

    Attributes:
        scan: how frames are decoded and sampled.
        shards: about how many shards the input is cut into, as far as their size stays between 1 and 256 MiB.
    """

    scan: ScanConfig = field(default_factory=ScanConfig)
    shards: int = 64

    def __post_init__(self) -> None:
        if self.shards < 1:
            raise ValueError(f"probe.shards must be >= 1, got {self.shards}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """The work of the probe stage; a task is a span of the table of sources.

    Attributes:
        config: how frames are taken.
        suppressed: sources and frames that were erased and are not read again; None where there are none.
    """

    name: ClassVar[str] = "probe"
    version: ClassVar[int] = 2
    libraries: ClassVar[tuple[str, ...]] = ("av", "numpy", "opencv-python-headless", "pillow", "pyarrow")

    config: ScanConfig
    suppressed: Suppressed | None = None

    def open(self) -> Callable[[Task], Output]:
        """The function that probes the sources of a task."""
        if self.suppressed is None:
            return functools.partial(self._run, None)
        return functools.partial(self._run, _Erased(self.suppressed.open(), self.suppressed.distance))

    def _run(self, erased: _Erased | None, task: Task) -> Output:
        rows: list[dict[str, Any]] = []
        faults: list[dict[str, Any]] = []
        counts = dict.fromkeys(("read", "undecodable", "duplicate", "not_sampled", "sources", "bad", "not_media"), 0)
        for span in task.spans:
            for uri in read_span(span, ["uri"]).column("uri").to_pylist():
                _probe_source(uri, self.config, erased, rows, faults, counts)
        return Output(table=pa.Table.from_pylist(rows, schema=PROBED), counts=counts, faults=faults)


def plan_shards(sizes: Sequence[int], shards: int) -> list[tuple[int, int]]:
    """Cuts a list of sources into runs of about equal bytes; a function of the input alone.

    Args:
        sizes: bytes of each source.
        shards: about how many runs; each holds at least 1 MiB and at most about 256 MiB or 4,096 sources.

    Returns:
        (start, stop) of each run, in order, covering all sources.
    """
    limit = min(max(sum(sizes) // shards, 1 << 20), 256 << 20)
    runs: list[tuple[int, int]] = []
    start = total = 0
    for index, size in enumerate(sizes):
        total += size + 4096
        if total >= limit or index - start >= 4095:
            runs.append((start, index + 1))
            start, total = index + 1, 0
    if start < len(sizes):
        runs.append((start, len(sizes)))
    return runs


def probe_spans(uri: str, sizes: Sequence[int], config: ProbeConfig) -> list[tuple[Span, ...]]:
    """The spans of the table of sources, one per task."""
    return [(Span(uri=uri, start=a, stop=b),) for a, b in plan_shards(sizes, config.shards)]


def sample_id(content: bytes, pts_us: int | None) -> str:
    """The name of a frame: blake2b-128 of its content hash and its time."""
    return hashlib.blake2b(content + str(pts_us).encode(), digest_size=16).hexdigest()


def opener(uri: str) -> Callable[[], BinaryIO]:
    """A function that opens a source."""
    return functools.partial(storage.open_read, uri)


def _probe_source(
    uri: str,
    config: ScanConfig,
    erased: _Erased | None,
    rows: list[dict[str, Any]],
    faults: list[dict[str, Any]],
    counts: dict[str, int],
) -> None:
    try:
        kind, digest = _identify(uri)
    except CurateError as error:
        _count(uri, Tally(read=1, undecodable=1, faults=[Fault("Unreadable", str(error), 1)]), faults, counts)
        return
    if kind is None and PurePosixPath(uri).suffix.lower() not in MEDIA_SUFFIXES:
        counts["not_media"] += 1
        return
    tally = Tally()
    if erased is not None and erased.listed.has_source(digest):
        erased.count(tally, "a source that was erased", 1, read=1)
    elif kind is None:
        message = "the content is no image, video or Parquet file, although the name says so"
        tally = Tally(read=1, undecodable=1, faults=[Fault("UnsupportedFormat", message, 1)])
    else:
        frames = (_row(uri, digest, kind, frame) for frame in scan(opener(uri), uri, kind, config, tally))
        rows.extend(frames if erased is None else erased.passed(frames, tally))
    _count(uri, tally, faults, counts)


@dataclass(frozen=True, slots=True)
class _Erased:
    """What erasures keep out.

    Attributes:
        listed: sources and frames.
        distance: of difference hashes.
    """

    listed: Suppression
    distance: int

    def passed(self, rows: Iterator[dict[str, Any]], tally: Tally) -> Iterator[dict[str, Any]]:
        """The rows of frames that were not erased; the others are counted."""
        gone = 0
        for row in rows:
            if self.listed.has_frame(row["content_sha256"], row["dhash64"], self.distance):
                gone += 1
            else:
                yield row
        if gone:
            self.count(tally, "frames that were erased, or look like one that was", gone)

    @staticmethod
    def count(tally: Tally, what: str, items: int, *, read: int = 0) -> None:
        """Counts items as not sampled; those that were not met while scanning are read as well."""
        tally.read += read
        tally.not_sampled += items
        tally.faults.append(Fault(ERASED, f"{what}; see the folder erasures", items))


def _identify(uri: str) -> tuple[str | None, bytes]:
    digest = hashlib.sha256()
    with storage.open_read(uri) as file:
        head = file.read(_CHUNK)
        kind = sniff(head)
        for chunk in _chunks(file, head):
            digest.update(chunk)
    if not head:
        kind = kind or ("image" if PurePosixPath(uri).suffix.lower() in MEDIA_SUFFIXES else None)
    return kind, digest.digest()


def _chunks(file: BinaryIO, head: bytes) -> Iterator[bytes]:
    chunk = head
    while chunk:
        yield chunk
        chunk = file.read(_CHUNK)


def _row(uri: str, digest: bytes, kind: str, frame: Frame) -> dict[str, Any]:
    content = content_sha256(frame.pixels)
    height, width = frame.pixels.shape[:2]
    return {
        "sample_id": sample_id(content, frame.pts_us),
        "content_sha256": content,
        "source_uri": uri,
        "source_sha256": digest,
        "media_kind": kind,
        "frame_index": frame.index,
        "frame_pts_us": frame.pts_us,
        "width": width,
        "height": height,
        "exif_orientation": frame.orientation,
        "scene": frame.scene,
        "dhash64": dhash64(frame.pixels),
        **computed_attributes(frame.pixels, frame.motion, frame.motion_grid),
        "motion_grid": None if frame.motion_grid is None else encode_grid(frame.motion_grid),
    }


def _count(uri: str, tally: Tally, faults: list[dict[str, Any]], counts: dict[str, int]) -> None:
    for key in ("read", "undecodable", "duplicate", "not_sampled"):
        counts[key] += getattr(tally, key)
    counts["sources"] += 1
    counts["bad"] += any(fault.error not in ("BlankFrame", ERASED) for fault in tally.faults)
    faults.extend(
        {
            "source": "" if f.error == ERASED else uri,
            "stage": "probe",
            "error": f.error,
            "message": f.message,
            "items": f.items,
        }
        for f in tally.faults
    )
