"""A root with three releases and what speaks of their samples, and the call that forgets a person."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from manifests.release import (
    FileEntry,
    fingerprint,
    parse_release,
    read_release_bytes,
    render_release,
    sha256_hex,
)
from manifests.report_index import entry_of, record
from manifests.verify import verify_release
from pipeline.forget import Forgotten, forget
from tests.pipeline.chains import step
from tests.review import releases
from tests.review.releases import Sample, figures

AT = datetime(2026, 3, 1, 12, tzinfo=UTC)
SUBJECT = "person-video-1"  # samples 3 (dropped, with pixels), 4 (held), 5 (kept)
GONE = (3, 4, 5)


def of(folder: Path) -> str:
    return fingerprint(read_release_bytes(folder))


def forgotten(root: Path, **given: Any) -> Forgotten:
    selection = (
        given
        if set(given) & {"subjects", "sample_ids", "source_sha256s", "source_uris"}
        else {"subjects": [SUBJECT], **given}
    )
    return forget(root, **{"reason": "a person asked", "at": AT, **selection})


def actions(done: Forgotten) -> dict[str, set[str]]:
    """Kind of thing -> what became of things of that kind."""
    found: dict[str, set[str]] = {}
    for item in done.items:
        found.setdefault(item.kind, set()).add(item.action)
    return found


def stage(root: Path, name: str, ids: Iterable[str], number: int = 0) -> Path:
    """A finished stage of rows that have these ids."""
    (root / "stages" / name).mkdir(parents=True, exist_ok=True)
    folder = root / "stages" / name / f"{number:020x}"
    step(name, folder, [pa.table({"sample_id": pa.array(list(ids), pa.string()), "n": [number] * len(list(ids))})])
    return folder


def releases_with(folder: Path, name: str, data: bytes, **changed: Any) -> Path:
    """The release with a document in place of what it had under this name, and other fields of release.json."""
    release = parse_release(read_release_bytes(folder))
    entry = FileEntry(path=name, bytes=len(data), sha256=sha256_hex(data))
    files = sorted([*(one for one in release.files if one.path != name), entry], key=lambda one: one.path)
    (folder / name).write_bytes(data)
    (folder / "release.json").write_bytes(render_release(replace(release, files=tuple(files), **changed)))
    assert verify_release(folder) == []
    return folder


def family(root: Path, count: int = 24) -> list[Sample]:
    """Three releases, each from the one before; a cache, pages and reports that speak of their samples."""
    samples = figures(count)
    first = releases.write(root, samples[: count * 3 // 4])
    second = releases.write(root, samples, parents=(of(first),))
    releases.write(root, samples[: count // 2], parents=(of(second),))
    stage(root, "label", [one.id for one in samples])
    stage(root, "teach", [])
    (root / "selection.html").write_text(f"<img src=x> {samples[4].id}")
    (root / "quarantine.json").write_text('[{"source":"/videos/video-1.mp4"}]')
    (root / "next").mkdir()
    (root / "next" / "label_first.csv").write_text(f"rank,sample_id\n1,{samples[3].id}\n")
    return samples


def report(root: Path, folder: Path, name: str, text: str) -> Path:
    entry = entry_of(root, root / "reports" / name, of(folder), [], images=True)
    record(root, entry)
    path = entry.file(root)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def releases_of(root: Path) -> list[Path]:
    return sorted(file.parent for file in (root / "releases").glob("*/release.json"))


def needles(samples: list[Sample], numbers: Iterable[int] = GONE) -> dict[str, bytes]:
    found = {"uri": b"/videos/video-1.mp4", "subject": SUBJECT.encode()}
    for number in numbers:
        row = releases.manifest_row(samples[number], None)
        found |= {
            f"id {number}": samples[number].id.encode(),
            f"jpeg {number}": releases.shard_row(samples[number]).image_jpeg,
            f"content {number}": row["content_sha256"],
            f"content hex {number}": row["content_sha256"].hex().encode(),
        }
    return found
