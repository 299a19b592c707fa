"""``curate forget``: a person, a consent, a source or a sample leaves every place below a root, and does not come back.

::

    resolve ─ journal ─ list of what ─ successors ─ look at ─ old releases, caches, ─ look  ─ tombstone
                        may not return              them      reports, audits go      again
              planned                               rewritten                                 done

Until the successors are committed and looked through nothing is removed; what goes wrong before withdraws the erasure,
and all is as it was. Killed at any time, the next ``forget`` finishes what is planned before it does anything else.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from manifests.erasures import (
    Erasure,
    ErasureError,
    Replaced,
    Suppression,
    check_reason,
    keyed_hash,
    make_key,
    read_erasures,
    read_key,
    read_suppression,
    sweep,
    write_erasure,
)
from manifests.forget import (
    Found,
    Held,
    Selection,
    find,
    held_of,
    read_rows,
)
from manifests.release import canonical_json
from manifests.report_index import ReportError
from manifests.successor import SuccessorError
from pipeline import storage
from pipeline.duplicates import MOST_DISTANCE
from pipeline.erasing import finish, journal, suppression_of
from pipeline.errors import InputError, StageError
from pipeline.holdings import Item, Target, holdings, inside, mentioned
from pipeline.look_alikes import LookAlike, look_alikes

_STANDING = (
    "the inputs themselves: source files, labelled and gold sets; remove the files there",
    "models that were trained on it, exported or not, and predictions that they made",
    "copies: backups, object stores, other machines, and blocks of this disk that are not overwritten yet",
)
"""What no erasure reaches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Forgotten:
    """What was forgotten, or would be.

    Attributes:
        id: of the erasure; "" of a dry run.
        dry_run: whether nothing was changed.
        count: samples.
        sources: sources that may never come back.
        frames: frames that may never come back, the samples among them.
        items: what held something of it, and what becomes of each.
        same_group: samples of the same groups that stay and look alike: somebody must decide on them.
        look_alikes: samples of other groups that look alike; a later run leaves them out.
        replaced: the releases that went, and their successors.
        finished: ids of earlier erasures that were finished first; of a dry run: that would be.
        out_of_reach: what no erasure reaches, in words.
    """

    id: str
    dry_run: bool
    count: int
    sources: int
    frames: int
    items: tuple[Item, ...]
    same_group: tuple[LookAlike, ...]
    look_alikes: int
    replaced: tuple[Replaced, ...] = ()
    finished: tuple[str, ...] = ()
    out_of_reach: tuple[str, ...] = _STANDING


def forget(
    root: Path,
    *,
    subjects: Sequence[str] = (),
    consent_refs: Sequence[str] = (),
    source_sha256s: Sequence[str] = (),
    source_uris: Sequence[str] = (),
    sample_ids: Sequence[str] = (),
    reason: str | None,
    at: datetime,
    dry_run: bool = False,
    elsewhere: Sequence[Path] = (),
    distance: int = MOST_DISTANCE,
) -> Forgotten:
    """Removes samples from every release, cache, report and audit of a root, and keeps them from coming back.

    Args:
        root: the output of runs: holds ``releases/``.
        subjects: people, as ``subject_ids`` has them.
        consent_refs: as ``consent_ref`` has them.
        source_sha256s: of source files, hex.
        source_uris: of source files, as runs read them; also those that never gave a frame.
        sample_ids: 32 hex digits.
        reason: one line for the tombstone; must name nobody. None for a dry run alone.
        at: when it was asked for, with a time zone.
        dry_run: only tells what would be done.
        elsewhere: further folders to search: audits, trainings, reports; what lies below the root is searched anyway.
        distance: largest Hamming distance of difference hashes at which samples look alike.

    Raises:
        InputError: something named is nowhere, a release is damaged, or the reason tells a name.
        StorageError: a run or another ``forget`` has the root.
        StageError: a release cannot be rewritten, and nothing was changed; or something cannot be removed, and the
            next call, whatever it names, goes on from there.
    """
    try:
        selection = Selection(
            subjects=tuple(subjects),
            consent_refs=tuple(consent_refs),
            source_sha256s=tuple(source_sha256s),
            source_uris=tuple(source_uris),
            sample_ids=tuple(sample_ids),
        )
        _check(root, at, elsewhere)
        elsewhere = [folder for folder in elsewhere if not inside(folder, root)]
        if dry_run:
            return _planned(root, selection, elsewhere, distance)
        reason = _checked(selection, reason)
        with storage.lock(str(root)):
            return _forget(root, selection, reason, at.astimezone(UTC).replace(microsecond=0), elsewhere, distance)
    except ErasureError as error:
        raise InputError(str(error)) from error
    except (SuccessorError, ReportError) as error:
        raise StageError(f"{error}. What is planned stays planned: forget again, and it goes on") from error


def _check(root: Path, at: datetime, elsewhere: Sequence[Path]) -> None:
    if not (root / "releases").is_dir() and not (root / "stages").is_dir():
        raise InputError(f"{root}: no releases/ and no stages/ here; give the --output of the runs")
    for folder in elsewhere:
        if not folder.is_dir():
            raise InputError(f"{folder} is no folder, so it cannot be searched; check the path")
        if inside(root, folder):
            raise InputError(
                f"{folder} holds the output {root} itself; name the folders beside it that are to be searched"
            )
    if at.utcoffset() is None:
        raise InputError(f"the time of an erasure must have a time zone, got {at.isoformat()}")


def _checked(selection: Selection, reason: str | None) -> str:
    if reason is None:
        raise InputError("the tombstone needs a reason in one line; it must name nobody")
    check_reason(reason)
    named = [name for name in (*selection.subjects, *selection.consent_refs) if len(name) > 2 and name in reason]
    if named:
        raise InputError(
            f"the reason stays in the tombstone and must name nobody, but holds {named[0]!r}; word it anew"
        )
    return reason


def _planned(root: Path, selection: Selection, elsewhere: Sequence[Path], distance: int) -> Forgotten:
    pending = [erasure.id for erasure in read_erasures(root) if erasure.state != "done"]
    try:
        found = _find(root, selection)
    except ErasureError as error:
        if pending:
            raise ErasureError(
                f"{error}. Unfinished: {', '.join(pending)}; a forget without --dry-run ends it"
            ) from error
        raise
    target, held = _target(root, found, selection, elsewhere)
    return replace(_told(root, found, held, target, distance, _beyond(selection, found)), finished=tuple(pending))


def _find(root: Path, selection: Selection) -> Found:
    return find(root, selection, lambda: _frames(root), lambda traces: mentioned(root, traces))


def _forget(
    root: Path, selection: Selection, reason: str, at: datetime, elsewhere: Sequence[Path], distance: int
) -> Forgotten:
    sweep(root)
    finished = [_finished(root, erasure) for erasure in read_erasures(root) if erasure.state != "done"]
    if finished:
        keyed = selection.keyed(read_key(root))
        for done, erasure in finished:
            if erasure.keyed == keyed:  # the same call again, after a kill
                return replace(done, finished=tuple(one.id for _, one in finished if one.id != erasure.id))
    try:
        found = _find(root, selection)
    except ErasureError as error:
        raise _erased_before(root, selection) or error from error
    target, held = _target(root, found, selection, elsewhere)
    told = _told(root, found, held, target, distance, _beyond(selection, found))
    key = make_key(root)
    listed = read_suppression(root) or Suppression(key=key)
    target = replace(target, added=json.loads(suppression_of(target, key).less(listed).render()))
    erasure = Erasure(
        id=_id(key, target, at),
        state="planned",
        at=at,
        reason=reason,
        count=found.count,
        keyed=selection.keyed(key),
        target=journal(target),
    )
    write_erasure(root, erasure)
    done, _ = _finished(root, erasure)
    return replace(
        told, id=erasure.id, dry_run=False, replaced=done.replaced, finished=tuple(one.id for _, one in finished)
    )


def _finished(root: Path, erasure: Erasure) -> tuple[Forgotten, Erasure]:
    done, target, items = finish(root, erasure)
    told = Forgotten(
        id=done.id,
        dry_run=False,
        count=done.count,
        sources=len(target.whole),
        frames=len(target.contents),
        items=tuple(items),
        same_group=(),
        look_alikes=0,
        replaced=done.replaced,
    )
    return told, done


def _erased_before(root: Path, selection: Selection) -> ErasureError | None:
    """Says so where all that is named was erased by an earlier call."""
    erasures = [erasure for erasure in read_erasures(root) if erasure.state == "done"]
    if not erasures:
        return None
    keyed = set(selection.keyed(read_key(root)))
    for erasure in erasures:
        if keyed <= set(erasure.keyed):
            return ErasureError(f"it was forgotten on {erasure.at:%Y-%m-%d} already (erasure {erasure.id})")
    return None


def _id(key: bytes, target: Target, at: datetime) -> str:
    named = canonical_json([sorted(target.samples), list(target.whole), list(target.uris), at.isoformat()])
    return "e-" + keyed_hash(key, "erasure", named)[:16]


def _frames(root: Path) -> Iterator[pa.Table]:
    """The candidate frames of every run, chosen or not; a part that cannot be read holds none that is known."""
    for path in sorted((root / "stages").glob("probe/*/part-*.parquet")):
        with contextlib.suppress(ErasureError):
            yield read_rows(path)


def _target(
    root: Path, found: Found, selection: Selection, elsewhere: Sequence[Path]
) -> tuple[Target, tuple[Held, ...]]:
    """What is to go, from what was found, and where; a source is named only where no row of it stays."""
    rows = found.rows
    still = {name: set(found.others.column(name).to_pylist()) for name in ("source_sha256", "source_uri")}
    paths = [path or [] for path in rows.column("cluster_path").to_pylist()]
    samples = rows.column("sample_id").to_pylist()
    sources = {*(s.hex() for s in rows.column("source_sha256").to_pylist() if s), *selection.source_sha256s}
    uris = {*rows.column("source_uri").to_pylist(), *selection.source_uris} - {None}
    target = Target(
        samples={sample: str(path[0]) if path else "" for sample, path in zip(samples, paths, strict=True)},
        contents=tuple(sorted({value.hex() for value in rows.column("content_sha256").to_pylist() if value})),
        dhashes=tuple(sorted({value for value in rows.column("dhash64").to_pylist() if value is not None})),
        whole=tuple(sorted({*(value.hex() for value in found.whole), *_digests(selection, found) - _hex(still)})),
        sources=tuple(sorted(sources - _hex(still))),
        uris=tuple(sorted(uris - still["source_uri"])),
        subjects=selection.subjects,
        releases={},
        stages=tuple(sorted({digest for held in found.held for digest in held.stages})),
        vouched=tuple(sorted(found.stages - {digest for held in found.held for digest in held.stages})),
        elsewhere=tuple(str(folder.resolve()) for folder in elsewhere),
    )
    held = held_of(root, target.traces)
    return replace(target, releases={one.folder.name: one.fingerprint for one in held}), held


def _hex(still: dict[str, set[Any]]) -> set[str]:
    return {value.hex() for value in still["source_sha256"]}


def _bare(selection: Selection, found: Found) -> list[str]:
    """Sources that were named by their uri and never gave a frame: no row says their sha256."""
    return sorted(set(selection.source_uris) - set(found.rows.column("source_uri").to_pylist()))


def _digests(selection: Selection, found: Found) -> set[str]:
    """Their sha256, hex, of those that are still there."""
    digests = set()
    for uri in _bare(selection, found):
        with contextlib.suppress(OSError), Path(uri).open("rb") as file:
            digests.add(hashlib.file_digest(file, "sha256").hexdigest())
    return digests


def _beyond(selection: Selection, found: Found) -> tuple[str, ...]:
    """What no erasure reaches, in words."""
    unread = [uri for uri in _bare(selection, found) if not Path(uri).is_file()]
    more = f"{len(unread)} sources of which no sha256 is known: a run that meets them reads them again"
    return (*_STANDING, more) if unread else _STANDING


def _told(
    root: Path, found: Found, held: Sequence[Held], target: Target, distance: int, beyond: tuple[str, ...]
) -> Forgotten:
    """What would be done."""
    items = [_release_item(one) for one in held] + holdings(root, target)
    same_group, others = look_alikes(found, distance)
    return Forgotten(
        id="",
        dry_run=True,
        count=found.count,
        sources=len(target.whole),
        frames=len(target.contents),
        items=(*items, *_linked(root, items)),
        same_group=same_group,
        look_alikes=others,
        out_of_reach=beyond,
    )


def _release_item(held: Held) -> Item:
    why = f"{len(held.samples)} of {held.rows} samples" if held.samples else "names it in its documents or groups"
    if held.emptied:
        return Item(kind="release", path=str(held.folder), action="remove", why=f"{why}: none is left")
    return Item(kind="release", path=str(held.folder), action="rewrite", why=why)


def _linked(root: Path, items: Sequence[Item]) -> Iterator[Item]:
    """Files that go and have another name outside of the root, by which their bytes stay."""
    names: dict[tuple[int, int], int] = {}
    for place, _, files in os.walk(root):
        for name in files:
            status = os.lstat(Path(place) / name)
            names[status.st_dev, status.st_ino] = names.get((status.st_dev, status.st_ino), 0) + 1
    for item in items:
        outside = 0
        for path in _going(item):
            status = path.lstat()
            known = names.get((status.st_dev, status.st_ino), 0)
            outside += known > 0 and status.st_nlink > known
        if outside:
            why = f"{outside} of its files have another name outside of {root}: their bytes stay there"
            yield Item(kind="link", path=item.path, action="tell", why=why)


def _going(item: Item) -> Iterator[Path]:
    path = Path(item.path)
    if item.action in ("remove", "rewrite"):
        yield from (file for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file())
