"""Where a root holds what is to be forgotten besides its releases: stage caches, pages, reports, audits, and the rest.

What somebody has made by hand (audits, annotation files) loses what belongs to the samples that go, and keeps the rest.
Stages are caches: one that holds a row of it goes whole, and so does every later one that no untouched release vouches
for, for pixels, soft masks, vectors and weights carry no name. What cannot be removed is told.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from manifests.audit import AUDIT_FILE, AuditError, Stratum, load_audit, render_audit
from manifests.release import RELEASE_FILE, canonical_json
from manifests.report_index import INDEX, forget_entries, read_index, reports_folder
from manifests.traces import NAMES, Traces, search
from pipeline import storage
from pipeline.annotations import edited
from pipeline.errors import StageError
from pipeline.review_logs import told_of_logs
from pipeline.stage import MANIFEST

Action = Literal["rewrite", "remove", "edit", "tell"]

PAGES = ("selection.html", "selection.json", "judge.html", "judge.json", "quarantine.json", "cells.json")
"""What a run leaves in its output beside stages and releases; made again by the next run."""
APART = frozenset({"teach", "teacher", "gold"})
"""Stages that no frame of the inputs enters; they go only where they name one."""
PICTURES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif"})
_OWN = frozenset({"releases", "reviews", "erasures", "stages", "reports"})
_LOGS = ("reviews", "erasures")
"""Folders beside releases/ of which nothing is ever taken: chains of events, and lists of erasures."""
_TRAINING = ("result.json", "state.pt")
_SHEETS = ("batch.jpg", "overlays.jpg")
"""Pictures of samples that a training leaves."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """What is to go, and how it can be recognised; kept in the journal until it is gone.

    Attributes:
        samples: ids of the samples, each with the first element of its cluster path, or "".
        contents: content hashes of their frames, hex.
        dhashes: their difference hashes.
        whole: sha256, hex, of the sources that may never come back.
        sources: sha256, hex, of the sources of which no row stays.
        uris: of the sources of which no row stays.
        subjects: people that were named.
        releases: name of a folder below releases/ -> fingerprint of a release that goes.
        stages: digests of the stages of these releases.
        vouched: digests of the stages of releases that hold nothing of it.
        elsewhere: further folders that are searched.
        added: what the erasure puts on the list of the root, as `Suppression.render` has it; taken off if withdrawn.
    """

    samples: Mapping[str, str]
    contents: tuple[str, ...]
    dhashes: tuple[int, ...]
    whole: tuple[str, ...]
    sources: tuple[str, ...]
    uris: tuple[str, ...]
    subjects: tuple[str, ...]
    releases: Mapping[str, str]
    stages: tuple[str, ...]
    vouched: tuple[str, ...]
    elsewhere: tuple[str, ...]
    added: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def traces(self) -> Traces:
        """What files are searched for."""
        return Traces(
            samples=frozenset(self.samples),
            contents=frozenset(map(bytes.fromhex, self.contents)),
            sources=frozenset(map(bytes.fromhex, self.sources)),
            uris=frozenset(self.uris),
            subjects=frozenset(self.subjects),
            releases=frozenset(self.releases.values()),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """One thing that holds something of what is to go.

    Attributes:
        kind: release, stage, page, report, audit, evaluation, training, review, file, link.
        path: of the file or folder.
        action: rewrite (a successor takes its place), remove, edit, or tell: it cannot be reached from here.
        why: in words.
    """

    kind: str
    path: str
    action: Action
    why: str


def holdings(root: Path, target: Target) -> list[Item]:
    """Everything below a root, and in the folders elsewhere, that holds something of what is to go; but no release.

    Raises:
        OSError: a folder cannot be read.
    """
    found = [*_unfinished(root, target), *_stages(root, target), *_reports(root, target)]
    found += _pages(root)
    found += [
        Item(kind="review", path=str(path), action="tell", why=why)
        for path, why in told_of_logs(root, target.traces, set(target.releases.values()))
    ]
    for top in (root, *map(Path, target.elsewhere)):
        found += _others(top, target, own=inside(top, root))
    return sorted(dict.fromkeys(found), key=lambda item: (item.kind, item.path))


def inside(path: Path, folder: Path) -> bool:
    """Whether a path is a folder or lies in it, however the two are spelled."""
    return path.resolve().is_relative_to(folder.resolve())


def mentioned(root: Path, traces: Traces) -> bool:
    """Whether a release, a stage or a page of a root names something: a source that never gave a frame, say.

    Raises:
        OSError: a file cannot be read.
    """
    files = (*(root / name for name in PAGES), *(root / "stages").glob(f"*/*/{MANIFEST}"))
    documents = (path for path in (root / "releases").glob("*/*.json"))
    return any(search(path, traces) & NAMES for path in (*files, *documents) if path.is_file())


def _unfinished(root: Path, target: Target) -> Iterator[Item]:
    """Folders below releases/ that no reader sees: of writers that were killed."""
    for folder in sorted((root / "releases").glob("*")):
        if folder.is_dir() and not (folder / RELEASE_FILE).exists() and folder.name not in target.releases:
            kinds = _kinds_below(folder, target)
            if kinds & {"sample", "content", "unreadable"}:
                yield Item(kind="file", path=str(folder), action="remove", why="a release that was never committed")
    yield from _loose(root / "releases", target)


def _loose(folder: Path, target: Target) -> Iterator[Item]:
    """The files directly in a folder."""
    yield from _single_files(folder, sorted(path.name for path in folder.glob("*")), target)


def _kinds_below(folder: Path, target: Target) -> set[str]:
    found: set[str] = set()
    for path in _files(folder):
        found |= search(path, target.traces)
    return found


def _files(folder: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        folders.sort()
        yield from (path for name in sorted(names) if (path := Path(place) / name).is_file())


# Stages ---------------------------------------------------------------------------------------------------------------


def _stages(root: Path, target: Target) -> Iterator[Item]:
    for folder in sorted((root / "stages").glob("*/*")):
        why = _stage_goes(folder, target) if folder.is_dir() else ""
        if why:
            yield Item(kind="stage", path=str(folder), action="remove", why=why)
    for folder in (root / "stages", *sorted((root / "stages").glob("*"))):
        yield from _loose(folder, target)


def _stage_goes(folder: Path, target: Target) -> str:
    """Why a stage's folder goes; "" where it stays."""
    kinds = _kinds_below(folder, target) - {"release", "closed"}
    if kinds - {"unreadable"}:
        return "names " + ", ".join(sorted(kinds - {"unreadable"}))
    if folder.parent.name in APART:
        return "cannot be read" if kinds else ""
    digest = _digest(folder)
    if digest in target.stages:
        return "made a release that goes"
    if digest in target.vouched and not kinds:
        return ""
    return "may come of it: no release that stays was made by it"


def _digest(folder: Path) -> str:
    try:
        return str(json.loads((folder / MANIFEST).read_bytes())["digest"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


# Pages, reports -------------------------------------------------------------------------------------------------------


def _pages(root: Path) -> Iterator[Item]:
    for name in PAGES:
        if (root / name).is_file():
            yield Item(kind="page", path=str(root / name), action="remove", why="of a run; the next one makes it again")


def _reports(root: Path, target: Target) -> Iterator[Item]:
    """Reports that the index lists, wherever they lie, and what else lies in reports/."""
    gone = set(target.releases.values())
    listed = {entry.file(root): entry for entry in read_index(root)}
    for path, entry in listed.items():
        if entry.fingerprint in gone:
            yield Item(kind="report", path=str(path), action="remove", why="of a release that goes")
    folders = {path.parent for path, entry in listed.items() if entry.fingerprint in gone}
    for path in _files(reports_folder(root)):
        if path in listed or path == reports_folder(root) / INDEX:
            continue
        kinds = search(path, target.traces)
        if kinds - {"uri", "source", "closed"}:
            yield Item(kind="report", path=str(path), action="remove", why="names a sample, or a release that goes")
        elif path.suffix.lower() in PICTURES and path.parent in folders:
            yield Item(kind="report", path=str(path), action="remove", why="a picture beside a report that goes")
        elif "closed" in kinds:
            yield Item(kind="report", path=str(path), action="tell", why=_CLOSED)


# Everything else ------------------------------------------------------------------------------------------------------


def _others(top: Path, target: Target, *, own: bool) -> Iterator[Item]:
    """What else lies in a folder: audits, evaluations, trainings, other releases, single files."""
    if any(_is_log(one) for one in (top.resolve(), *top.resolve().parents)):
        yield from _log(top, target)
        return
    for place, folders, names in os.walk(top):
        folder = Path(place)
        for log in sorted(name for name in folders if _is_log(folder / name)):
            yield from () if own and folder == top else _log(folder / log, target)
        skipped = _OWN if own and folder == top else {name for name in folders if _is_log(folder / name)}
        folders[:] = sorted(name for name in folders if name not in skipped)
        if RELEASE_FILE in names:
            folders.clear()
            if _kinds_below(folder, target) & {"sample", "content"}:
                why = "a release of another root: forget there too"
                yield Item(kind="release", path=str(folder), action="tell", why=why)
        elif AUDIT_FILE in names:
            folders.clear()
            yield from _audit(folder, target)
        elif "evaluation.json" in names or MANIFEST in names:
            folders.clear()
            yield from _whole_folder(folder, target)
        else:
            hidden = PAGES if own and folder == top else ()
            yield from _single_files(folder, [name for name in sorted(names) if name not in hidden], target)


def _is_log(folder: Path) -> bool:
    """Whether a folder holds the review logs or the erasures of a root."""
    return folder.name in _LOGS and (folder.parent / "releases").is_dir()


def _log(folder: Path, target: Target) -> Iterator[Item]:
    if _kinds_below(folder, target) & NAMES:
        why = "logs of another root name it: forget there too, or read them"
        yield Item(kind="review", path=str(folder), action="tell", why=why)


def _audit(folder: Path, target: Target) -> Iterator[Item]:
    try:
        named = [drawn for drawn in load_audit(folder).samples if drawn.sample_id in target.samples]
    except AuditError as error:
        if _kinds_below(folder, target) & {"sample", "content"}:
            yield Item(kind="audit", path=str(folder), action="tell", why=f"damaged, edit it by hand: {error}")
        return
    if named:
        yield Item(kind="audit", path=str(folder), action="edit", why=f"{len(named)} frames with their masks")


def _whole_folder(folder: Path, target: Target) -> Iterator[Item]:
    """An evaluation or a stage of one: results of a run, gone as a whole."""
    kinds = _kinds_below(folder, target) - {"release", "closed"}
    if kinds - {"unreadable"}:
        why = "names " + ", ".join(sorted(kinds - {"unreadable"}))
        yield Item(kind="evaluation", path=str(folder), action="remove", why=why)


def _single_files(folder: Path, names: list[str], target: Target) -> Iterator[Item]:
    trained = False
    for name in names:
        path = folder / name
        if not path.is_file():
            continue
        kinds = search(path, target.traces)
        trained |= name in _TRAINING and "release" in kinds
        item = _single_file(path, kinds, target)
        if item:
            yield item
    if trained:
        why = "trained on a release that goes: what it learnt cannot be taken out; train again"
        yield Item(kind="training", path=str(folder), action="tell", why=why)
        for name in set(_SHEETS) & set(names):
            why = "pictures of training samples"
            yield Item(kind="training", path=str(folder / name), action="remove", why=why)


def _single_file(path: Path, kinds: frozenset[str], target: Target) -> Item | None:
    if path.is_symlink():
        why = "a link to a file that names it; remove both"
        return Item(kind="link", path=str(path), action="tell", why=why) if kinds - {"release"} else None
    if kinds & {"sample", "content"}:
        return _named_file(path, target)
    if kinds & {"uri", "source", "subject"}:
        return Item(kind="file", path=str(path), action="tell", why="names a source or a person: edit or remove it")
    if "release" in kinds and path.suffix == ".html":
        return Item(kind="report", path=str(path), action="remove", why="of a release that goes")
    if "release" in kinds and path.name not in _TRAINING:
        return Item(kind="file", path=str(path), action="tell", why="came of a release that goes")
    return Item(kind="file", path=str(path), action="tell", why=_CLOSED) if "closed" in kinds else None


def _named_file(path: Path, target: Target) -> Item:
    """A file that names a sample: a list goes, work of people on other samples too stays."""
    if path.suffix.lower() == ".xml":
        return Item(kind="file", path=str(path), action="tell", why="names a sample that goes: edit or remove it")
    by_name = target.traces.named_by(path.name)
    if not by_name and path.suffix.lower() == ".json" and edited(path, target.traces) is not None:
        why = "what is drawn on samples that go; the rest stays"
        return Item(kind="file", path=str(path), action="edit", why=why)
    return Item(kind="file", path=str(path), action="remove", why="names a sample that goes")


_CLOSED = "compressed, so it cannot be searched: look into it, or remove it"


# Removing -------------------------------------------------------------------------------------------------------------


def clear(root: Path, item: Item, target: Target) -> None:
    """Remove or edit one thing; what is gone already is no error, so a killed run goes on.

    Raises:
        StageError: it cannot be removed.
    """
    path = Path(item.path)
    try:
        if item.action == "edit" and item.kind == "audit":
            _edit_audit(path, target)
        elif item.action == "edit":
            data = edited(path, target.traces)
            if data is not None:
                storage.write_bytes(str(path), data)
        elif path.is_dir() and not path.is_symlink():
            (path / MANIFEST).unlink(missing_ok=True)  # first: a stage without it is not there
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
            if item.kind == "report":
                entries = [one.path for one in read_index(root) if one.file(root) == path]
                if entries:
                    forget_entries(root, entries)
    except OSError as error:
        raise StageError(
            f"cannot remove {item.path}: {storage.reason(error)}; check the permissions, and forget again: it goes on"
        ) from error


def _edit_audit(folder: Path, target: Target) -> None:
    """Take frames out of an audit; its `audit.json` last, so that a killed run finds them again."""
    audit = load_audit(folder)
    named = [drawn for drawn in audit.samples if drawn.sample_id in target.samples]
    if len(named) == len(audit.samples):
        shutil.rmtree(folder)
        return
    names = {drawn.name for drawn in named}
    for path in _files(folder):
        if path.parent != folder and path.stem in names:
            path.unlink()
        elif path.parent == folder and path.suffix == ".json" and path.name != AUDIT_FILE:
            _edit_coco(path, names)
    left = tuple(drawn for drawn in audit.samples if drawn.name not in names)
    strata = dict(audit.strata)
    for drawn in named:
        cluster = _cluster(strata, target.samples[drawn.sample_id])
        one = strata[cluster]
        strata[cluster] = Stratum(population=max(1, one.population - 1), drawn=one.drawn - 1)
    storage.write_bytes(str(folder / AUDIT_FILE), render_audit(replace(audit, samples=left, strata=strata)))


def _cluster(strata: Mapping[str, Stratum], known: str) -> str:
    """The stratum of a frame: its cluster, or the largest draw where nobody knows it any more."""
    if known in strata and strata[known].drawn:
        return known
    return max(sorted(strata), key=lambda name: strata[name].drawn)


def _edit_coco(path: Path, names: set[str]) -> None:
    """Take the images of some frames out of a COCO file, with what was drawn on them."""
    try:
        value: Any = json.loads(path.read_bytes())
        images = {image["id"]: Path(str(image["file_name"])).stem for image in value["images"]}
        gone = {number for number, name in images.items() if name in names}
        value["images"] = [image for image in value["images"] if image["id"] not in gone]
        value["annotations"] = [one for one in value.get("annotations", []) if one["image_id"] not in gone]
    except (ValueError, KeyError, TypeError):
        return  # no COCO file: it holds no frame of the audit by its name
    if gone:
        storage.write_bytes(str(path), canonical_json(value))
