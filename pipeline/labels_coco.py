"""Masks of a release to annotation tools and back: ``curate export-labels`` and ``curate import-labels``.

What comes back makes a new release; the old one is never changed. Everything in a file is taken over, or nothing is.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.measures import counted
from manifests.edits import Assertion, Edit, SuccessorError
from manifests.mask import MaskError, decode_mask, mask_sha256
from manifests.paper import PlaceError, outside_releases
from manifests.release import Json, Release, ReleaseError, fingerprint, parse_release, read_release_bytes
from manifests.signoff import ReviewLogError
from manifests.successor import write_successor
from pipeline import storage
from pipeline.brush_rle import encode_brush
from pipeline.coco import CocoError, Mask
from pipeline.errors import InputError, StorageError, UsageError, did_you_mean
from pipeline.labels_dialects import PERSON, TOOLS, Image, Labels, read_labels
from pipeline.labels_samples import DIGITS, Sample, image_name, parse_name, read_pixels, read_samples
from review.apply import PREFIX
from review.catalog import Catalog
from review.columns import CatalogError
from review.decisions import LiveDecisions
from review.ids import hex_ids
from review.log import FrozenListError, ReviewLog
from review.query import Query, QueryError

ANNOTATIONS, TASKS = "annotations.json", "label_studio.json"
TO_REDRAW = (Query(state=("redraw",)), Query(decision=("hold",), reason=(f"{PREFIX}redraw",)))
"""What reviewers want drawn again, and what was held for that when their decisions were applied."""
BY = "import-labels"
_NAMED = 10
_MAX_PIXELS = 1 << 26


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What went out.

    Attributes:
        folder: that holds it.
        samples: images in it.
        without_pixels: ids of samples that were asked for and have no pixels in the release.
    """

    folder: Path
    samples: int
    without_pixels: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What is wrong with one row of a file.

    Attributes:
        row: the image, as the tool calls it; empty for what belongs to none.
        message: the rule and the value found.
    """

    row: str
    message: str


class LabelsError(InputError):
    """A file that cannot be taken over as it is; nothing of it was.

    Attributes:
        faults: all of them, in the order of the file.
    """

    def __init__(self, source: Path, faults: Sequence[Fault]) -> None:
        told = "; ".join(f"{fault.row or 'the file'}: {fault.message}" for fault in faults[:_NAMED])
        more = f"; and {len(faults) - _NAMED} more" if len(faults) > _NAMED else ""
        super().__init__(f"{source}: {counted(len(faults), 'fault')}, so nothing was imported: {told}{more}")
        self.faults = tuple(faults)


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """What came in.

    Attributes:
        folder: of the new release.
        fingerprint: of the new release.
        changed: ids of the samples with a new mask.
        same: ids of those whose mask is the release's, to the pixel; nothing of them was written.
        dialect: of the file.
    """

    folder: Path
    fingerprint: str
    changed: tuple[str, ...]
    same: tuple[str, ...]
    dialect: str


# Out ------------------------------------------------------------------------------------------------------------------


def export_labels(
    folder: Path,
    output: Path,
    *,
    ids: Sequence[str] | None = None,
    redraw: bool = False,
    query: Query | None = None,
) -> Exported:
    """Writes images and masks for annotation tools; exactly one of ids, redraw and query says of which samples.

    ::

        output/annotations.json    COCO with plain run lengths: CVAT
        output/label_studio.json   tasks with painted predictions: Label Studio
        output/images/NAME.jpg
        output/masks/NAME.png      0 background, 1 person

    Args:
        folder: of the release.
        output: must not be there yet, or be empty.
        ids: of the samples; each must have pixels.
        redraw: those that the reviewers want drawn again.
        query: those that it finds.

    Raises:
        UsageError: not exactly one of the three, or the output lies in a release.
        InputError: no release, no such sample, none with pixels, or a broken review log.
        StorageError: the output is there already, or cannot be written.
    """
    if (ids is not None) + redraw + (query is not None) != 1:
        raise UsageError("say of which samples: exactly one of sample ids, --redraw and a query")
    release, own = _release(folder)
    wanted = list(ids) if ids is not None else _found(folder, TO_REDRAW if query is None else (query,))
    samples = _samples(folder, release, wanted, strict=ids is not None)
    drawable = [sample for sample in samples if sample.shard is not None]
    if not drawable:
        what = (
            "no sample is to be drawn again" if redraw and not samples else "no such sample has pixels in the release"
        )
        raise InputError(f"{folder}: {what}; nothing was exported")
    _check_free(output)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as beside:
            made = Path(beside) / output.name
            made.mkdir()
            _write(made, folder, release, own, drawable)
            made.replace(output)
    except OSError as error:
        raise StorageError(f"cannot write {output}: {storage.reason(error)}; nothing was exported") from error
    without = tuple(sorted(sample.id for sample in samples if sample.shard is None))
    return Exported(folder=output, samples=len(drawable), without_pixels=without)


def _release(folder: Path) -> tuple[Release, str]:
    try:
        data = read_release_bytes(folder)
        return parse_release(data), fingerprint(data)
    except ReleaseError as error:
        raise InputError(str(error)) from error


def _found(folder: Path, queries: Sequence[Query]) -> list[str]:
    """Ids of what any of the queries finds, with what the reviewers of this release say."""
    try:
        catalog = Catalog.open(folder)
        states = LiveDecisions(ReviewLog.open(folder)).now().states(catalog.ids)
        rows = [catalog.select(query, states) for query in queries]
    except (CatalogError, FrozenListError, QueryError, ReleaseError, ReviewLogError) as error:
        raise InputError(str(error)) from error
    return hex_ids(catalog.ids[np.unique(np.concatenate(rows))])


def _samples(folder: Path, release: Release, wanted: Sequence[str], *, strict: bool) -> list[Sample]:
    """The samples in the order of their ids; strict: each must be there, once, and have pixels."""
    found = read_samples(folder, release, wanted)
    if strict:
        twice = [name for name, number in Counter(wanted).items() if number > 1]
        unknown = [name for name in wanted if name not in found]
        bare = [name for name, sample in found.items() if sample.shard is None]
        for names, what in ((twice, "named twice"), (unknown, "not in the release"), (bare, "without pixels there")):
            if names:
                raise InputError(f"{folder}: {counted(len(names), 'sample')} {what}: {_listed(names)}; leave them out")
    return [found[name] for name in sorted(found)]


def _check_free(output: Path) -> None:
    try:
        outside_releases(output)
    except PlaceError as error:
        raise UsageError(str(error)) from error
    if output.is_symlink() or (output.exists() and not (output.is_dir() and not any(output.iterdir()))):
        raise StorageError(f"{output} is there already; people may have work in it: name another --output")


def _write(made: Path, folder: Path, release: Release, own: str, samples: Sequence[Sample]) -> None:
    for place in ("images", "masks"):
        (made / place).mkdir()
    number = {sample.id: n for n, sample in enumerate(samples, 1)}
    images: dict[int, str] = {}
    annotations: dict[int, str] = {}
    tasks: dict[int, str] = {}
    for sample, jpeg, png in read_pixels(folder, release, samples):
        name = image_name(sample, own)
        (made / "images" / f"{name}.jpg").write_bytes(jpeg)
        (made / "masks" / f"{name}.png").write_bytes(png)
        try:
            mask = decode_mask(png, _MAX_PIXELS)
        except MaskError as error:
            raise InputError(f"sample {sample.id}: {error}; `curate verify {folder}` lists what is broken") from error
        at = number[sample.id]
        images[at] = json.dumps(_image_record(at, name, sample))
        tasks[at] = json.dumps(_task(name, sample, mask, own))
        if mask.any():
            annotations[at] = json.dumps(_annotation(at, mask))
    head = {
        "info": {"description": f"masks of {release.name}", "version": "1.0"},
        "curate": {"release": own, "name": release.name, "format": 1},
        "licenses": [],
        "categories": [{"id": 1, "name": PERSON, "supercategory": ""}],
    }
    listed = {"images": images, "annotations": annotations}
    parts = [f"{json.dumps(key)}: [\n{_lines(rows)}\n]" for key, rows in listed.items()]
    (made / ANNOTATIONS).write_text(json.dumps(head)[:-1] + ",\n" + ",\n".join(parts) + "}\n")
    (made / TASKS).write_text(f"[\n{_lines(tasks)}\n]\n")


def _lines(rows: Mapping[int, str]) -> str:
    return ",\n".join(rows[number] for number in sorted(rows))


def _image_record(number: int, name: str, sample: Sample) -> dict[str, Any]:
    return {
        "id": number,
        "file_name": f"{name}.jpg",
        "width": sample.width,
        "height": sample.height,
        "sample_id": sample.id,
        "content_sha256": sample.content_sha256,
    }


def _annotation(number: int, mask: Mask) -> dict[str, Any]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    left, top = int(columns[0]), int(rows[0])
    return {
        "id": number,
        "image_id": number,
        "category_id": 1,
        "segmentation": {"size": list(mask.shape), "counts": encode_runs(mask)},
        "area": int(mask.sum()),
        "bbox": [left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1],
        "iscrowd": 1,
    }


def encode_runs(mask: NDArray[np.bool_]) -> list[int]:
    """Uncompressed run lengths of a mask, (H, W) bool: background first, then alternating, down the columns."""
    flat = mask.T.ravel()
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs: list[int] = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    return [0, *runs] if flat[0] else runs


def _task(name: str, sample: Sample, mask: Mask, own: str) -> dict[str, Any]:
    """A task of Label Studio whose prediction is the mask: what nobody looked at comes back without annotation."""
    region = {
        "id": sample.id[:10],
        "type": "brushlabels",
        "from_name": "label",
        "to_name": "image",
        "image_rotation": 0,
        "original_width": sample.width,
        "original_height": sample.height,
        "value": {"format": "rle", "rle": encode_brush(mask), "brushlabels": [PERSON]},
    }
    return {
        "data": {
            "image": f"/data/local-files/?d=images/{name}.jpg",
            "sample_id": sample.id,
            "content_sha256": sample.content_sha256,
        },
        "predictions": [{"model_version": f"release {own[:DIGITS]}", "result": [region] if mask.any() else []}],
    }


# In -------------------------------------------------------------------------------------------------------------------


def import_labels(
    folder: Path,
    source: Path,
    *,
    at: datetime,
    tool: str | None = None,
    empty: bool = False,
    output: Path | None = None,
) -> Imported:
    """Makes the release that follows with the masks that a tool gives back: all of a file, or none of it.

    A sample with a new mask is kept from then on, with label_source human_corrected; one whose mask is the same to the
    pixel stays as it is. Equal input gives an equal release, so a command that was killed is given again.

    Args:
        folder: of the release that the labels were exported from.
        source: file of the tool, or a folder of PNG masks.
        at: when the labels came in, an instant with a time zone.
        tool: a key of `pipeline.labels_dialects.TOOLS`; None to tell it from the file.
        empty: whether an image that the file lists without a region shows nobody. Without it such images are refused,
            for tools list those that nobody has looked at as well.
        output: root below whose releases/ the new one goes; None for that of the release.

    Raises:
        UsageError: no such tool.
        LabelsError: rows at fault, each named: an image that is no sample of this release, twice there, of other
            content, of another release or size, without a region, or with one that breaks a rule.
        InputError: no release; the file cannot be read, is of a dialect that is not read, or changes nothing.
    """
    if tool is not None and tool not in TOOLS:
        raise UsageError(f"no such tool: {tool!r}{did_you_mean(tool, TOOLS)}")
    release, own = _release(folder)
    try:
        labels = read_labels(source, tool)
    except CocoError as error:
        raise InputError(f"{source}: {error}; nothing was imported") from error
    masks, samples = _checked(folder, release, own, source, labels, empty=empty)
    same = tuple(sorted(name for name, one in masks.items() if one.same_as(samples[name])))
    changed = tuple(sorted(set(masks) - set(same)))
    if not changed:
        raise InputError(f"{source}: all {len(same)} masks are as the release has them; nothing was imported")
    who = f"{tool or labels.dialect}: {source.name}"
    edits = {name: _edit(samples[name], masks[name], who, labels.sha256) for name in changed}
    cause: dict[str, Json] = {"by": BY, "source": who, "sha256": labels.sha256.hex()}
    cause |= {"masks": len(changed), "same": len(same)}
    try:
        made, digest = write_successor(folder, edits=edits, cause=cause, at=at, output=output)
    except SuccessorError as error:
        raise InputError(f"{source}: {error}") from error
    return Imported(folder=made, fingerprint=digest, changed=changed, same=same, dialect=labels.dialect)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Drawn:
    """A mask that came back; `ignore` is None where nothing is to be left out."""

    mask: Mask
    ignore: Mask | None

    def same_as(self, sample: Sample) -> bool:
        return self.ignore is None and mask_sha256(self.mask) == sample.mask_sha256


def _checked(
    folder: Path, release: Release, own: str, source: Path, labels: Labels, *, empty: bool
) -> tuple[dict[str, _Drawn], dict[str, Sample]]:
    """The masks by sample id, and these samples; raises with every fault of every row."""
    named = [(image, parse_name(image.name)) for image in labels.images]
    samples = read_samples(folder, release, (name.sample_id for _, name in named if name))
    times = Counter(name.sample_id for _, name in named if name)
    faults = [Fault(row="", message=message) for message in labels.faults]
    if labels.release is not None and labels.release != own:
        faults.append(Fault(row="", message=_stale(str(labels.release), own)))
    if not labels.images:
        faults.append(Fault(row="", message="it must list at least one image"))
    masks: dict[str, _Drawn] = {}
    for image, name in named:
        sample = samples.get(name.sample_id) if name else None
        wrong = list(image.faults)
        if name is None:
            wrong.append("its name is none that export-labels gave (SAMPLE_CONTENT_RELEASE.jpg): keep the names")
        elif sample is None:
            wrong.append(f"sample {name.sample_id} is not in this release")
        else:
            wrong += _mismatches(image, name.content, name.release, sample, own, times[sample.id])
            drawn, bad = _painted(image, sample, empty=empty)
            wrong += bad
            masks[sample.id] = drawn
        faults += [Fault(row=f"image {image.name!r:.120}", message=message) for message in wrong]
    if faults:
        raise LabelsError(source, faults)
    return masks, samples


def _mismatches(image: Image, content: str, release: str, sample: Sample, own: str, times: int) -> Iterable[str]:
    """What does not fit between an image and the sample that it names."""
    if times > 1:
        yield f"is there {times} times"
    if release != own[:DIGITS]:
        yield _stale(release, own)
    if content != sample.content_sha256[:DIGITS]:
        yield f"is of other content: {content}…, the sample's is {sample.content_sha256[:DIGITS]}…"
    for key, expected in (("sample_id", sample.id), ("content_sha256", sample.content_sha256)):
        if image.stated.get(key, expected) != expected:
            yield f"states the {key} {image.stated[key]!r:.80}, its name says {expected[:DIGITS]}…"
    if sample.shard is None:
        yield "has no pixels in this release, so its mask cannot be kept"
    if image.size is not None and image.size != (sample.height, sample.width):
        yield f"must be {sample.width}x{sample.height}, is {image.size[1]}x{image.size[0]}"


def _stale(found: str, own: str) -> str:
    return f"was exported from release {found[:DIGITS]}…, this is {own[:DIGITS]}…: import it there, or export again"


def _painted(image: Image, sample: Sample, *, empty: bool) -> tuple[_Drawn, list[str]]:
    """The union of the regions, and what is wrong with them."""
    planes = [np.zeros((sample.height, sample.width), np.bool_) for _ in range(2)]
    faults: list[str] = []
    for region in image.regions:
        try:
            plane = region.paint(sample.height, sample.width)
        except CocoError as error:
            faults.append(f"{region.where}: {error}")
            continue
        if not plane.any() and region.where != "mask":
            faults.append(f"{region.where}: covers no pixel; a box is no mask")
        planes[region.ignore] |= plane
    mask, ignore = planes
    if not mask.any() and not (faults or image.faults or empty) and mask_sha256(mask) != sample.mask_sha256:
        faults.append("has no person; where somebody looked and saw nobody, import with --empty")
    return _Drawn(mask=mask, ignore=ignore & ~mask if ignore.any() else None), faults


def _edit(sample: Sample, drawn: _Drawn, who: str, sha256: bytes) -> Edit:
    """A person's mask is kept whatever was decided before, for that was about another mask."""
    said = Assertion(
        name="mask",
        value=mask_sha256(drawn.mask).hex(),
        provenance="human",
        source_id=who,
        source_sha256=sha256,
    )
    decided: dict[str, Any] = (
        {} if sample.decision == "keep" else {"decision": "keep", "reasons": ("redrawn",), "by": BY}
    )
    return Edit(mask=drawn.mask, ignore=drawn.ignore, label_source="human_corrected", evidence=(said,), **decided)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
