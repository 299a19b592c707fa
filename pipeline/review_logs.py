"""What review logs say in free words of samples that go: the events stay, for a chain with a gap proves nothing."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from manifests.traces import NAMES, Traces, search

_WORDS = ("text", "reasons", "title", "conditions", "checklist")
"""Fields of an event that hold what a reviewer has written."""
_SHORT = 2
"""Subjects of so few characters are not looked for in words."""


def told_of_logs(root: Path, traces: Traces, going: Collection[str]) -> Iterator[tuple[Path, str]]:
    """The logs of releases that go, and the events of any log that say something of a sample that goes.

    Args:
        root: holds `reviews/`; also logs of releases that earlier erasures removed are read.
        traces: of what goes.
        going: fingerprints of the releases that go.

    Yields:
        A log or an event, and what is to be told of it.
    """
    for folder in sorted(path for path in (root / "reviews").glob("*") if path.is_dir()):
        events = sorted(folder.glob("*.json"))
        if events and folder.name in going:
            why = f"{len(events)} events: ids stay, or the chain would break; none of them counts for the successor"
            yield folder, why
        frozen = {path.stem.removeprefix("ids-"): path for path in folder.glob("ids-*.bin")}
        hit = {digest for digest, path in frozen.items() if _lists_any(path, traces)}
        for path in events:
            if _speaks(path, traces, hit, folder.name in going):
                yield path, "written in free words about a sample that goes: the text stays; read it"


def _lists_any(path: Path, traces: Traces) -> bool:
    """Whether a frozen list, 16 bytes per id, holds a sample that goes."""
    try:
        data = path.read_bytes()
    except OSError:
        return True
    return any(data[at : at + 16].hex() in traces.samples for at in range(0, len(data), 16))


def _speaks(path: Path, traces: Traces, frozen: Collection[str], going: bool) -> bool:
    """Whether an event says in words something of a sample that goes, or names a person or a source in them."""
    try:
        event: Any = json.loads(path.read_bytes())
        target = event.get("target") or {}
        words = [event.get(name) for name in _WORDS] + [target.get("query")]
        meant = not traces.samples.isdisjoint(target.get("ids") or ()) or target.get("ids_sha256") in frozen
    except (OSError, ValueError, TypeError, AttributeError):
        return bool(search(path, traces) & NAMES)
    meant = meant or (going and event.get("type") == "signoff")
    texts = list(_texts(words))
    subjects = [one for one in traces.subjects if len(one) > _SHORT]
    return bool(meant and texts) or any(traces.named_by(text) or any(s in text for s in subjects) for text in texts)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, str) and value:
        yield value
