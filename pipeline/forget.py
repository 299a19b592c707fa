"""``curate forget``: a person, a consent, a source or a sample leaves every place below a root, and does not come back.

::

    resolve ─ suppression list ─ journal ─ successors ─ old releases, caches, reports, audits go ─ look ─ tombstone
                                 planned   rewritten                                               again  done

Until the successors are committed nothing is removed. Killed at any time, the next ``forget`` finishes what is planned
before it does anything else.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

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
    write_suppression,
)
from manifests.forget import Found, Held, Selection, find, held_of, read_rows, releases_of, remove_release, rewrite
from manifests.release import Json, canonical_json
from manifests.report_index import ReportError
from manifests.successor import SuccessorError
from manifests.traces import search
from pipeline import storage
from pipeline.duplicates import MOST_DISTANCE, near_hashes
from pipeline.errors import InputError, StageError
from pipeline.holdings import Item, Target, clear, holdings

_SHOWN = 200
"""Look-alikes that are listed; the rest are counted."""
_STANDING = (
    "the inputs themselves: source files, labelled and gold sets; remove the files there",
    "models that were trained on it, exported or not, and predictions that they made",
    "copies: backups, object stores, other machines, and blocks of this disk that are not overwritten yet",
)
"""What no erasure reaches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LookAlike:
    """A sample that stays and looks like one that goes.

    Attributes:
        sample_id: of the sample that stays.
        source_uri: of its source.
        distance: Hamming distance of the difference hashes.
    """

    sample_id: str
    source_uri: str
    distance: int


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
        sample_ids: 32 hex digits.
        reason: one line for the tombstone; must name nobody. None for a dry run alone.
        at: when it was asked for, with a time zone.
        dry_run: only tells what would be done.
        elsewhere: further folders to search: audits, trainings, reports.
        distance: largest Hamming distance of difference hashes at which samples look alike.

    Raises:
        InputError: something named is nowhere, a release is damaged, or the reason tells a name.
        StorageError: a run or another ``forget`` has the root.
        StageError: something cannot be written or removed; the same call goes on from there.
    """
    try:
        selection = Selection(
            subjects=tuple(subjects),
            consent_refs=tuple(consent_refs),
            source_sha256s=tuple(source_sha256s),
            sample_ids=tuple(sample_ids),
        )
        _check(root, at, elsewhere)
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
        found = find(root, selection, lambda: _frames(root))
    except ErasureError as error:
        if pending:
            raise ErasureError(
                f"{error}. Unfinished: {', '.join(pending)}; a forget without --dry-run ends it"
            ) from error
        raise
    target = _target(found, selection, elsewhere)
    return replace(_told(root, found, target, distance), finished=tuple(pending))


def _forget(
    root: Path, selection: Selection, reason: str, at: datetime, elsewhere: Sequence[Path], distance: int
) -> Forgotten:
    sweep(root)
    finished = [_finish(root, erasure) for erasure in read_erasures(root) if erasure.state != "done"]
    if finished:
        keyed = selection.keyed(read_key(root))
        for done, erasure in finished:
            if erasure.keyed == keyed:  # the same call again, after a kill
                return replace(done, finished=tuple(one.id for _, one in finished if one.id != erasure.id))
    try:
        found = find(root, selection, lambda: _frames(root))
    except ErasureError as error:
        raise _erased_before(root, selection) or error from error
    target = _target(found, selection, elsewhere)
    told = _told(root, found, target, distance)
    key = make_key(root)
    listed = read_suppression(root) or Suppression(key=key)
    contents = [bytes.fromhex(value) for value in target.contents]
    whole = [bytes.fromhex(value) for value in target.whole]
    erasure = Erasure(
        id=_id(key, target, at),
        state="planned",
        at=at,
        reason=reason,
        count=found.count,
        keyed=selection.keyed(key),
        target=_journal(target),
    )
    write_suppression(root, listed.joined(whole, contents, target.dhashes))  # first: from now on it cannot come back
    write_erasure(root, erasure)
    done, _ = _finish(root, erasure, found.held)
    return replace(
        told, id=erasure.id, dry_run=False, replaced=done.replaced, finished=tuple(one.id for _, one in finished)
    )


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
    named = canonical_json([sorted(target.samples), at.isoformat()])
    return "e-" + keyed_hash(key, "erasure", named)[:16]


def _frames(root: Path) -> Iterator[pa.Table]:
    """The candidate frames of every run, chosen or not; a part that cannot be read holds none that is known."""
    for path in sorted((root / "stages").glob("probe/*/part-*.parquet")):
        with contextlib.suppress(ErasureError):
            yield read_rows(path)


def _target(found: Found, selection: Selection, elsewhere: Sequence[Path]) -> Target:
    """What is to go, from what was found; a source is named only where no row of it stays."""
    rows = found.rows
    still = {name: set(found.others.column(name).to_pylist()) for name in ("source_sha256", "source_uri")}
    paths = [path or [] for path in rows.column("cluster_path").to_pylist()]
    samples = rows.column("sample_id").to_pylist()
    return Target(
        samples={sample: str(path[0]) if path else "" for sample, path in zip(samples, paths, strict=True)},
        contents=tuple(sorted({value.hex() for value in rows.column("content_sha256").to_pylist() if value})),
        dhashes=tuple(sorted({value for value in rows.column("dhash64").to_pylist() if value is not None})),
        whole=tuple(sorted(value.hex() for value in found.whole)),
        sources=tuple(sorted({s.hex() for s in rows.column("source_sha256").to_pylist() if s} - _hex(still))),
        uris=tuple(sorted(set(rows.column("source_uri").to_pylist()) - still["source_uri"])),
        subjects=selection.subjects,
        releases={held.folder.name: held.fingerprint for held in found.held},
        stages=tuple(sorted({digest for held in found.held for digest in held.stages})),
        vouched=tuple(sorted(found.stages - {digest for held in found.held for digest in held.stages})),
        elsewhere=tuple(str(folder.resolve()) for folder in elsewhere),
    )


def _hex(still: dict[str, set[Any]]) -> set[str]:
    return {value.hex() for value in still["source_sha256"]}


def _told(root: Path, found: Found, target: Target, distance: int) -> Forgotten:
    """What would be done."""
    items = [_release_item(held) for held in found.held] + holdings(root, target)
    same_group, others = _look_alikes(found, distance)
    return Forgotten(
        id="",
        dry_run=True,
        count=found.count,
        sources=len(target.whole),
        frames=len(target.contents),
        items=(*items, *_linked(root, items)),
        same_group=same_group,
        look_alikes=others,
    )


def _release_item(held: Held) -> Item:
    why = f"{len(held.samples)} of {held.rows} samples"
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


def _look_alikes(found: Found, distance: int) -> tuple[tuple[LookAlike, ...], int]:
    """Samples that stay and look like one that goes: those of its group, and how many of other groups."""
    stays = found.others.filter(found.others.column("dhash64").is_valid())
    others = _hashes(stays)
    near = _near(_hashes(found.rows.filter(found.rows.column("dhash64").is_valid())), others, distance)
    groups = set(found.rows.column("group_id").to_pylist()) - {None}
    same: dict[str, LookAlike] = {}
    elsewhere: set[str] = set()
    for row in np.flatnonzero(np.isin(others, np.array(list(near), np.uint64))).tolist():
        one = {name: stays.column(name)[row].as_py() for name in ("sample_id", "source_uri", "group_id")}
        if one["group_id"] not in groups:
            elsewhere.add(one["sample_id"])
        elif len(same) < _SHOWN:
            same[one["sample_id"]] = LookAlike(
                sample_id=one["sample_id"], source_uri=one["source_uri"], distance=near[int(others[row])]
            )
    return tuple(same[name] for name in sorted(same)), len(elsewhere)


def _hashes(table: pa.Table) -> NDArray[np.uint64]:
    """(N,) difference hashes of rows that all have one."""
    return np.asarray(table.column("dhash64").to_numpy(), np.uint64)


def _near(gone: NDArray[np.uint64], others: NDArray[np.uint64], distance: int) -> dict[int, int]:
    """Hash of a sample that stays -> its distance to the nearest that goes, where that is at most ``distance``."""
    first, second = np.unique(gone), np.unique(others)
    found = dict.fromkeys(np.intersect1d(first, second).tolist(), 0)
    both = np.union1d(first, second)
    going = np.isin(both, first)
    for a, b in near_hashes(both, distance).T.tolist():
        for one, other in ((a, b), (b, a)):
            if going[one] and not going[other]:
                apart = int(np.bitwise_count(both[one] ^ both[other]))
                found[int(both[other])] = min(apart, found.get(int(both[other]), 64))
    return found


# Doing it -------------------------------------------------------------------------------------------------------------


def _finish(root: Path, erasure: Erasure, held: Sequence[Held] | None = None) -> tuple[Forgotten, Erasure]:
    """Does what is left of an erasure, from whichever state a kill left it in."""
    target = _read_target(erasure)
    if erasure.state == "planned":
        held = held_of(root, target.samples, map(bytes.fromhex, target.contents)) if held is None else held
        replaced: list[Replaced] = []
        for one in held:
            replaced.append(rewrite(one, erasure.id, erasure.at, replaced))
        target = replace(target, releases={one.folder.name: one.fingerprint for one in held})
        erasure = replace(erasure, state="rewritten", replaced=tuple(replaced), target=_journal(target))
        write_erasure(root, erasure)
    for name in target.releases:
        _remove_release(root / "releases" / name)
    items = holdings(root, target)
    for item in items:
        if item.action in ("remove", "edit"):
            clear(root, item, target)
    left = [item for item in holdings(root, target) if item.action in ("remove", "edit")]
    if left:
        raise StageError(f"{left[0].path} still holds what was to go ({left[0].why}); remove it, and forget again")
    _check_releases(root, erasure, target)
    done = replace(erasure, state="done", target={})
    write_erasure(root, done)
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


def _remove_release(folder: Path) -> None:
    try:
        remove_release(folder)
    except OSError as error:
        raise StageError(f"cannot remove {folder}: {storage.reason(error)}; forget again, and it goes on") from error


def _check_releases(root: Path, erasure: Erasure, target: Target) -> None:
    """Look again: no release of the root may name what has gone."""
    for folder, _, _ in releases_of(root):
        for path in sorted(file for file in folder.rglob("*") if file.is_file()):
            kinds = search(path, target.traces) & {"sample", "content", "uri", "source"}
            if kinds:
                what = ", ".join(sorted(kinds))
                raise StageError(f"{path} still names a {what} of erasure {erasure.id}; forget again, or report this")


def _journal(target: Target) -> dict[str, Json]:
    value: dict[str, Json] = json.loads(canonical_json(dataclasses.asdict(target)))
    return value


def _read_target(erasure: Erasure) -> Target:
    try:
        value: dict[str, Any] = {
            name: tuple(one) if isinstance(one, list) else one for name, one in erasure.target.items()
        }
        return Target(**value)
    except (ValueError, KeyError, TypeError) as error:
        raise ErasureError(f"the journal of erasure {erasure.id} is damaged ({error}); put back a backup") from error
