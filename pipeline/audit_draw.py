"""``curate audit`` draws: which frames of a pool a person looks at, and the folder they come in.

::

    pool ─ population of each cluster ─ allocate ─ share of dropped ones ─ groups in turn ─ names in another order

Within a cluster kept (or held) and dropped frames are drawn in proportion to their true numbers. A release has pixels
of some dropped frames only; those are the ones of smallest hashes, so which of them can be shown tells nothing of
their labels, and the sample stays unbiased. Where they are too few the cluster gives fewer frames in all, rather than
more of the kept ones.
"""

from __future__ import annotations

import heapq
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from manifests.audit import AUDIT_FILE, Audit, AuditError, Drawn, Stratum, is_audit, load_audit, render_audit
from manifests.release import canonical_json
from pipeline import storage
from pipeline.audit_pool import Frame, Pool
from pipeline.errors import InputError
from pipeline.select import selection_key

FLOOR = 12
"""Fewest frames of a cluster, as far as it has them: rates of fewer tell next to nothing."""
ANNOTATIONS = "annotations.json"
"""The COCO file for annotation tools."""
CATEGORY = "person"

_FOLDERS = ("images", "masks", "ignore")


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """What was drawn.

    Attributes:
        frames: in the order of their names.
        strata: cluster -> how many of how many.
        notes: sentences a user must know.
        sampled: whether they are a random sample.
    """

    frames: tuple[Frame, ...]
    strata: Mapping[str, Stratum]
    notes: tuple[str, ...]
    sampled: bool = True


def draw_audit(
    pool: Pool, output: Path, *, size: int, seed: int, coco: bool = False, without: Sequence[Path] = ()
) -> tuple[Audit, tuple[str, ...]]:
    """Draws frames of a pool and writes an audit folder; equal arguments give equal bytes.

    Args:
        pool: labelled frames.
        output: a new or empty folder, or one with this very audit in which nobody has drawn yet.
        size: frames to draw.
        seed: of the draw.
        coco: whether to write a COCO file for annotation tools.
        without: audit folders whose frames are left out.

    Returns:
        What ``audit.json`` says, and sentences a user must know.

    Raises:
        InputError: there is nothing to draw, a source is gone, or the output holds something else.
        StorageError: the folder cannot be written.
    """
    seen = audited_ids(without)
    drawn = draw([frame for frame in pool.frames if frame.sample_id not in seen], size, seed)
    return write_audit(pool, output, drawn, size=size, seed=seed, coco=coco), drawn.notes


def audited_ids(folders: Sequence[Path]) -> set[str]:
    """The sample ids of audit folders.

    Raises:
        InputError: one is no audit.
    """
    try:
        return {drawn.sample_id for folder in folders for drawn in load_audit(folder).samples}
    except AuditError as error:
        raise InputError(f"--without: {error}") from error


def write_audit(pool: Pool, output: Path, drawn: Draw, *, size: int, seed: int, coco: bool = False) -> Audit:
    """Writes the folder of what was drawn; equal arguments give equal bytes.

    Args:
        pool: what it was drawn from.
        output: a new or empty folder, or one with this very audit in which nobody has drawn yet.
        drawn: the frames.
        size: frames that were asked for.
        seed: of the draw.
        coco: whether to write a COCO file for annotation tools.

    Returns:
        What ``audit.json`` says.

    Raises:
        InputError: a source is gone, or the output holds something else or lies in what is drawn from.
        StorageError: the folder cannot be written.
    """
    if output.resolve().is_relative_to(pool.folder.resolve()):
        raise InputError(f"--output {output} lies in {pool.folder}, which must not change; choose another folder")
    try:
        audit = audit_of(pool, drawn, size, seed)
    except AuditError as error:
        raise InputError(f"the pool is damaged: {error}; publish or label again") from error
    check_target(output, audit)
    _write(output, audit, pool, drawn.frames, coco=coco)
    return audit


def draw(frames: Sequence[Frame], size: int, seed: int) -> Draw:
    """Chooses frames; depends neither on their order nor on what is not a fact of theirs.

    Args:
        frames: labelled ones, with or without pixels, of distinct sample ids.
        size: how many.
        seed: of the draw.

    Raises:
        InputError: no frame can be drawn.
    """
    clusters: dict[str, list[Frame]] = defaultdict(list)
    for frame in frames:
        clusters[frame.cluster].append(frame)
    population = {name: len(clusters[name]) for name in sorted(clusters)}
    lost = {name: sum(frame.dropped for frame in clusters[name]) for name in population}
    shown = {name: sum(frame.dropped and frame.shown for frame in clusters[name]) for name in population}
    room = {name: capacity(population[name], lost[name], shown[name]) for name in population}
    numbers = allocate(population, size, room)
    dropped = dropped_numbers(numbers, population, lost, seed)
    chosen: list[Frame] = []
    for name, number in numbers.items():
        taken: Counter[str] = Counter()
        for among, many in ((False, number - dropped[name]), (True, dropped[name])):
            candidates = [frame for frame in clusters[name] if frame.dropped == among and frame.shown]
            chosen += in_turn(candidates, many, seed, taken)
    if not chosen:
        raise InputError("no labelled frame can be drawn: all are without pixels or were audited; draw from elsewhere")
    strata = {name: Stratum(population=population[name], drawn=numbers[name]) for name in population}
    short = allocate(population, size)
    notes = [
        f"cluster {name} gives {numbers[name]} frames and not {short[name]}: pixels of {shown[name]} of its "
        f"{lost[name]} dropped frames are in the release; draw from the label stage, or raise publish.audit"
        for name in population
        if numbers[name] < short[name]
    ]
    if len(chosen) < size:
        notes.append(f"{len(chosen)} frames were drawn and not {size}: more cannot be had from {len(frames)} in all")
    return Draw(frames=shuffled(chosen, seed), strata=strata, notes=tuple(notes))


def shuffled(frames: Sequence[Frame], seed: int) -> tuple[Frame, ...]:
    """The order of the names: by a hash of its own, which tells nothing of a frame."""
    return tuple(sorted(frames, key=lambda one: (selection_key(seed, f"name|{one.sample_id}"), one.sample_id)))


def allocate(population: Mapping[str, int], size: int, room: Mapping[str, int] | None = None) -> dict[str, int]:
    """How many frames of each cluster: first the floor, then the rest in proportion, by largest remainders.

    Args:
        population: cluster -> its frames, >= 1.
        size: frames to share out, >= 0.
        room: cluster -> most that can be drawn of it, at most its population; None: all of it.

    Returns:
        Cluster -> frames. They add up to ``size`` or, where that is less, to all the room; a cluster has at least
        ``FLOOR`` or its room where the size suffices for that, else all are filled to one level.
    """
    room = population if room is None else room
    given = dict.fromkeys(population, 0)
    while any(given[name] < min(FLOOR, room[name]) for name in given) and sum(given.values()) < size:
        low = [name for name in given if given[name] < min(FLOOR, room[name])]
        low.sort(key=lambda name: (given[name], -population[name], name))
        for name in low[: size - sum(given.values())]:
            given[name] += 1
    while True:
        rest = size - sum(given.values())
        open_ = {name: population[name] - given[name] for name in given if given[name] < room[name]}
        if rest <= 0 or not open_:
            return given
        for name, more in _proportional(open_, min(rest, sum(open_.values()))).items():
            given[name] = min(room[name], given[name] + more)


def _proportional(weights: Mapping[str, int], number: int) -> dict[str, int]:
    """Hare quotas with largest remainders; of equal remainders the larger weight, then the smaller name."""
    total = sum(weights.values())
    shares = {name: divmod(number * weight, total) for name, weight in weights.items()}
    left = number - sum(whole for whole, _ in shares.values())
    order = sorted(shares, key=lambda name: (-shares[name][1], -weights[name], name))
    favoured = set(order[:left])
    return {name: shares[name][0] + (name in favoured) for name in shares}


def capacity(population: int, dropped: int, shown: int) -> int:
    """Most frames that a cluster gives in which dropped ones have their share.

    Args:
        population: labelled frames of the cluster.
        dropped: of these.
        shown: of the dropped, with pixels.
    """
    return population if dropped == 0 else min(population, shown * population // dropped)


def dropped_numbers(
    numbers: Mapping[str, int], population: Mapping[str, int], dropped: Mapping[str, int], seed: int
) -> dict[str, int]:
    """How many of each cluster's frames are dropped ones.

    Systematic rounding from a start that is a hash: each number is within one of its share and has the share as its
    mean over seeds, and so has the sum; rounding each on its own would never draw a class that is rare everywhere.
    """
    order = sorted(numbers, key=lambda name: (selection_key(seed, f"cluster|{name}"), name))
    reached = Fraction(selection_key(seed, "dropped"), 1 << 64)
    found = {}
    for name in order:
        before = reached
        reached += Fraction(numbers[name] * dropped[name], population[name])
        found[name] = reached.__floor__() - before.__floor__()
    return found


def in_turn(frames: Sequence[Frame], number: int, seed: int, taken: Counter[str]) -> list[Frame]:
    """Frames of smallest hashes; a group gives its next one only when no other has given fewer.

    So two near-identical frames of one source are drawn only where there are fewer groups than frames to draw.

    Args:
        frames: at least ``number``.
        number: how many.
        seed: of the hashes.
        taken: frames that each group has given; is counted on.
    """
    groups: dict[str, list[tuple[int, str, Frame]]] = defaultdict(list)
    for frame in frames:
        groups[frame.group].append((selection_key(seed, frame.sample_id), frame.sample_id, frame))
    for members in groups.values():
        members.sort(key=lambda member: member[:2], reverse=True)
    heap = [(taken[group], *members[-1][:2], group) for group, members in groups.items()]
    heapq.heapify(heap)
    chosen: list[Frame] = []
    while len(chosen) < number:
        group = heapq.heappop(heap)[-1]
        chosen.append(groups[group].pop()[2])
        taken[group] += 1
        if groups[group]:
            heapq.heappush(heap, (taken[group], *groups[group][-1][:2], group))
    return chosen


def audit_of(pool: Pool, drawn: Draw, size: int, seed: int) -> Audit:
    """What ``audit.json`` says of a draw; names count in the order of the frames."""
    digits = max(4, len(str(len(drawn.frames))))
    samples = tuple(
        Drawn(
            name=f"{number:0{digits}}",
            sample_id=frame.sample_id,
            content_sha256=frame.content_sha256,
            width=frame.width,
            height=frame.height,
        )
        for number, frame in enumerate(drawn.frames, 1)
    )
    return Audit(
        seed=seed,
        size=size,
        origin=pool.origin,
        fingerprint=pool.fingerprint,
        samples=samples,
        strata=drawn.strata,
        sampled=drawn.sampled,
    )


def coco_of(audit: Audit) -> bytes:
    """A COCO file with the images of an audit, the category person and no annotation, for annotation tools."""
    images = [
        {"id": number, "file_name": f"{drawn.name}.jpg", "width": drawn.width, "height": drawn.height}
        for number, drawn in enumerate(audit.samples, 1)
    ]
    categories = [{"id": 1, "name": CATEGORY, "supercategory": ""}]
    return canonical_json({"images": images, "annotations": [], "categories": categories})


def check_target(output: Path, audit: Audit) -> None:
    """Refuses an output in which something would be lost.

    Raises:
        InputError: it holds masks, another audit, or what is no audit.
    """
    if not output.exists() and not output.is_symlink():
        return
    if not output.is_dir():
        raise InputError(f"--output {output} is no folder; give another one")
    names = {path.name for path in output.iterdir()}
    if not names:
        return
    if not is_audit(output):
        raise InputError(f"--output {output} must be a new or empty folder, it holds {min(names)!r}; give another one")
    if any(next((output / part).glob("*"), None) for part in ("masks", "ignore")):
        raise InputError(
            f"--output {output} is an audit with masks, and they are never overwritten; give another --output, or "
            f"check what is there: curate audit {output}"
        )
    surplus = names - {AUDIT_FILE, ANNOTATIONS, *_FOLDERS}
    if surplus or not _is_same(output, audit):
        found = repr(min(surplus)) if surplus else "another audit, whose images may be with people already"
        raise InputError(f"--output {output} holds {found}; give another --output, or move it away")


def _is_same(output: Path, audit: Audit) -> bool:
    """Whether a folder holds this audit, whatever version of curate wrote it."""
    try:
        return load_audit(output) == audit
    except AuditError:
        return False


def _write(output: Path, audit: Audit, pool: Pool, frames: Sequence[Frame], *, coco: bool) -> None:
    """Writes the folder under another name beside its place, then moves it there."""
    output = output.absolute()
    data = render_audit(audit)
    key = selection_key(0, data.decode())
    aside, old = (output.with_name(f".{output.name}.{key:016x}.{kind}") for kind in ("new", "old"))
    shutil.rmtree(aside, ignore_errors=True)
    names = {drawn.sample_id: drawn.name for drawn in audit.samples}
    try:
        with storage.working_folder(str(aside)):
            (aside / "masks").mkdir()
            _write_images(aside / "images", pool.pictures(frames), names)
            if coco:
                storage.write_bytes(str(aside / ANNOTATIONS), coco_of(audit))
            storage.write_bytes(str(aside / AUDIT_FILE), data)
            check_target(output, audit)  # again: somebody may have begun to draw
            if output.exists():
                shutil.rmtree(old, ignore_errors=True)
                output.rename(old)
            aside.rename(output)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def _write_images(folder: Path, pictures: Iterable[tuple[str, bytes]], names: Mapping[str, str]) -> None:
    waiting = set(names)
    for sample_id, jpeg in pictures:
        storage.write_bytes(str(folder / f"{names[sample_id]}.jpg"), jpeg)
        waiting.remove(sample_id)
    if waiting:
        raise InputError(f"sample {min(waiting)} has no pixels any more ({len(waiting)} in all); publish again")
