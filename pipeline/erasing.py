"""An erasure that is written down is carried out, or withdrawn while nothing has been removed.

::

    planned    the list of what must not come back, a successor for each release that goes, a look through all of them
    rewritten  the old releases go, then caches, reports, and frames of audits; then all is looked through again
    done
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from manifests.erasures import (
    Erasure,
    ErasureError,
    Suppression,
    parse_suppression,
    read_key,
    read_suppression,
    withdraw_erasure,
    write_erasure,
    write_suppression,
)
from manifests.forget import Held, held_of, naming, releases_of, remove_release, rewrite
from manifests.release import RELEASE_FILE, Json, ReleaseError, canonical_json, read_release
from manifests.report_index import ReportError
from manifests.successor import SuccessorError
from manifests.traces import Traces
from pipeline import storage
from pipeline.errors import StageError
from pipeline.holdings import Item, Target, clear, holdings


def finish(root: Path, erasure: Erasure) -> tuple[Erasure, Target, list[Item]]:
    """Does what is left of an erasure, from whichever state a kill left it in.

    Returns:
        The erasure as it is now, what went, and what held it besides releases.

    Raises:
        StageError: it was withdrawn, and nothing is changed; or something cannot be removed, and stays to be.
    """
    target = _read_target(erasure)
    if erasure.state == "planned":
        erasure, target = _prepared(root, erasure, target)
    else:  # a release that came since
        erasure, target = _rewritten(root, erasure, target, held_of(root, target.traces))
    for name in target.releases:
        _remove_release(root / "releases" / name)
    items = holdings(root, target)
    for item in items:
        if item.action in ("remove", "edit"):
            clear(root, item, target)
    left = [item for item in holdings(root, target) if item.action in ("remove", "edit")]
    if left:
        raise StageError(f"{left[0].path} still holds what was to go ({left[0].why}); remove it, and forget again")
    _check_releases(root, erasure, target.traces, ())
    done = replace(erasure, state="done", target={})
    write_erasure(root, done)
    return done, target, items


def _prepared(root: Path, erasure: Erasure, target: Target) -> tuple[Erasure, Target]:
    """Does all that can fail before anything is removed; what fails withdraws the erasure.

    Raises:
        StageError: it was withdrawn, and nothing is changed; or it could not be, and stays planned.
    """
    key = read_key(root)
    try:
        listed = read_suppression(root) or Suppression(key=key)
        write_suppression(root, listed.more(suppression_of(target, key)))  # from now on it cannot come back
        return _rewritten(root, erasure, replace(target, releases={}), held_of(root, target.traces))
    except (ErasureError, SuccessorError, ReportError, ReleaseError, StageError, OSError) as error:
        _withdraw(root, erasure, target, error)
        raise StageError(
            f"{error}. Erasure {erasure.id} of {erasure.at:%Y-%m-%d} was withdrawn, and nothing was changed: mend "
            f"this, and forget again"
        ) from error


def _rewritten(root: Path, erasure: Erasure, target: Target, held: Sequence[Held]) -> tuple[Erasure, Target]:
    """Writes the successors, looks through all releases that are to stay, and commits to the removal."""
    held = [one for one in held if one.folder.name not in target.releases and not _is_of(one.folder, erasure)]
    if erasure.state == "rewritten" and not held:
        return erasure, target
    replaced, key = list(erasure.replaced), read_key(root)
    for one in held:
        replaced.append(rewrite(one, erasure.id, erasure.at, replaced, target.traces, key))
    target = replace(target, releases={**target.releases, **{one.folder.name: one.fingerprint for one in held}})
    _check_releases(root, erasure, target.traces, target.releases)
    _check_rights(root, target)
    erasure = replace(erasure, state="rewritten", replaced=tuple(replaced), target=journal(target))
    write_erasure(root, erasure)
    return erasure, target


def _withdraw(root: Path, erasure: Erasure, target: Target, error: Exception) -> None:
    """Takes back what a planned erasure has written: its successors, what it put on the list, its journal."""
    try:
        for file in sorted((root / "releases").glob(f"*/{RELEASE_FILE}")):
            if _is_of(file.parent, erasure):
                remove_release(file.parent)
        listed = read_suppression(root)
        if listed is not None and target.added:
            added = parse_suppression(canonical_json(target.added), read_key(root), f"the journal of {erasure.id}")
            write_suppression(root, listed.less(added))
        withdraw_erasure(root, erasure)
    except (ErasureError, OSError) as second:
        raise StageError(
            f"{error}. Erasure {erasure.id} stays planned, for it cannot be withdrawn either ({second}); mend "
            f"both, and forget again: nothing has been removed"
        ) from error


def _is_of(folder: Path, erasure: Erasure) -> bool:
    """Whether a release is a successor that this erasure has written."""
    try:
        cause = read_release(folder).inputs.get("successor")
    except ReleaseError:
        return False
    return isinstance(cause, dict) and (cause.get("by"), cause.get("erasure")) == ("forget", erasure.id)


def _remove_release(folder: Path) -> None:
    try:
        remove_release(folder)
    except OSError as error:
        raise StageError(f"cannot remove {folder}: {storage.reason(error)}; forget again, and it goes on") from error


def _check_releases(root: Path, erasure: Erasure, traces: Traces, going: Collection[str]) -> None:
    """Look again: no release of the root may name what has gone, but those that are going."""
    for folder, _, _ in releases_of(root):
        for path, what in naming(folder, traces) if folder.name not in going else ():
            raise StageError(
                f"{path} still names a {what} of erasure {erasure.id}, and this cannot take it out; remove the release "
                f"{folder.name} or make it anew without"
            )


def _check_rights(root: Path, target: Target) -> None:
    """Refuse where something could not be removed, before anything is."""
    folders = {root / "releases" / name for name in target.releases} | {root / "releases"}
    folders |= {Path(item.path).parent for item in holdings(root, target) if item.action in ("remove", "edit")}
    for folder in sorted(folders):
        if folder.is_dir() and not os.access(folder, os.W_OK | os.X_OK):
            raise StageError(
                f"{folder} is not ours to change, but something in it must go; get the right to write there"
            )


def journal(target: Target) -> dict[str, Json]:
    """A target as the file of its erasure keeps it."""
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


def suppression_of(target: Target, key: bytes) -> Suppression:
    """What a target puts on the list."""
    sources, contents = ([bytes.fromhex(value) for value in one] for one in (target.whole, target.contents))
    return Suppression(key=key).joined(sources, contents, target.dhashes)
