"""Which reports of the releases of a root there are: `<root>/reports/index.json`, so that an erasure finds them.

```
{"format": 1, "reports": [{"path": "r-0123.html", "fingerprint": "…", "images": true, "samples": 300,
                           "samples_sha256": "…"}, …]}
```

`path` is relative to `<root>/reports/`, or absolute where the report lies outside the root. `samples_sha256` is the
sha256 of the sorted sample ids, one a line. An entry is written before its report, so a report without an entry never
exists, but an entry may be of a report that was never finished, or was removed since.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from manifests.disk import put
from manifests.release import canonical_json, sha256_hex

FOLDER = "reports"
INDEX = "index.json"
FORMAT = 1


class ReportError(ValueError):
    """A report that cannot be written; the message says why, and what to do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A report that was written.

    Attributes:
        path: relative to the folder of the reports where it lies below the root, else absolute.
        fingerprint: of its release.
        images: whether it holds pictures.
        samples: whose ids it holds.
        samples_sha256: of their sorted ids, one a line.
    """

    path: str
    fingerprint: str
    images: bool
    samples: int
    samples_sha256: str

    def __post_init__(self) -> None:
        """Check what an erasure relies on."""
        for field, kind in (("path", str), ("fingerprint", str), ("images", bool), ("samples", int)):
            if type(getattr(self, field)) is not kind:
                raise ReportError(f"{INDEX}: {field} must be {kind.__name__}, got {getattr(self, field)!r:.80}")

    def file(self, root: Path) -> Path:
        """Where the report lies."""
        return Path(os.path.normpath(reports_folder(root) / self.path))


def reports_folder(root: Path) -> Path:
    """Where the reports of a root lie unless somebody says otherwise."""
    return root / FOLDER


def entry_of(root: Path, output: Path, fingerprint: str, ids: Sequence[str], *, images: bool) -> Entry:
    """The entry of a report that is to be written to ``output``."""
    place, home = output.resolve(), root.resolve()
    inside = place.is_relative_to(home)
    return Entry(
        path=os.path.relpath(place, reports_folder(home)) if inside else str(place),
        fingerprint=fingerprint,
        images=images,
        samples=len(ids),
        samples_sha256=sha256_hex("".join(f"{one}\n" for one in sorted(ids)).encode()),
    )


def read_index(root: Path) -> list[Entry]:
    """The reports of a root, by path; none where none was written.

    Raises:
        ReportError: the index cannot be read, or is of another format.
    """
    path = reports_folder(root) / INDEX
    try:
        return _parsed(json.loads(path.read_bytes()))
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ReportError(
            f"{path} is no list of reports: {error}; put back the original, or remove it and all reports beside it"
        ) from error


def _parsed(value: Any) -> list[Entry]:
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise ReportError(f"format must be {FORMAT}")
    return [Entry(**one) for one in value["reports"]]


def record(root: Path, entry: Entry) -> None:
    """Add an entry to the index; one of the same path is replaced. Durable when it returns.

    Raises:
        ReportError: the index cannot be read or written.
    """
    with _changing(root) as entries:
        entries[:] = [one for one in entries if one.path != entry.path] + [entry]


def forget_entries(root: Path, paths: Sequence[str]) -> None:
    """Take entries out of the index, when their reports are gone.

    Raises:
        ReportError: the index cannot be read or written.
    """
    with _changing(root) as entries:
        entries[:] = [one for one in entries if one.path not in set(paths)]


@contextlib.contextmanager
def _changing(root: Path) -> Iterator[list[Entry]]:
    """The entries, written back when the caller has changed them; one process at a time."""
    folder = reports_folder(root)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".index.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            entries = read_index(root)
            yield entries
            ordered = sorted(entries, key=lambda one: one.path)
            put(folder / INDEX, canonical_json({"format": FORMAT, "reports": [asdict(one) for one in ordered]}))
    except OSError as error:
        raise ReportError(
            f"{folder / INDEX} cannot be written: {error}; a report must be listed there, so that an erasure finds it: "
            f"make the folder writable, or copy the release to one that is"
        ) from error
