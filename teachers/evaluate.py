"""Measure a teacher on labelled images: per image, per class of every attribute, and how far to trust its odds.

    output/
      images.parquet     one row per image
      classes.csv        one row for all images, then one per class of every attribute
      reliability.csv    predicted probability against observed frequency, before and after a temperature
      reliability.png    the same, drawn
      overlays.jpg       the worst, the median and the best images by IoU, mistakes painted
      evaluation.json    what was measured and the figures of the whole set; written last: the folder is finished

Pixels of a sample's ignore mask count nowhere. `teachers.score` defines every score and which are null: in no mean,
but counted beside it.
"""

import csv
import io
import json
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from evaluation import picture
from manifests.labelled import Labelled, labelled_sha256, load_labelled
from teachers.calibrate import Histogram, Reliability, count, empty, fit_temperature, reliability, reliability_plot
from teachers.score import (
    BOUNDARY_RATIO,
    LEAST_IMAGES,
    LEVEL,
    METRICS,
    RESAMPLES,
    SEED,
    Attributes,
    ClassScore,
    Estimate,
    ImageScore,
    by_class,
    score,
)
from teachers.teacher import Prediction, Teacher, TeacherError
from training.files import write_atomically

#: Pictures shown: so many worst, median and best.
SHOWN = 8
#: A larger table of attributes is not read.
MAX_ATTRIBUTE_BYTES = 64 * 2**20
MAX_ATTRIBUTES = 64

_SIDE, _COLUMNS = 256, 6


class EvaluationError(ValueError):
    """What is to be evaluated does not fit together; the message names rule, value and remedy."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """What `evaluate` measured.

    Attributes:
        teacher_id: The teacher's.
        teacher_sha256: Of its file.
        labelled_sha256: Of the labelled set.
        images: One score per image, by name.
        classes: All images first, then the classes by attribute and name, "unknown" last.
        before: Reliability of the probabilities as they are.
        after: That after the temperature that fits this very set best, so a little flattered.
        seconds_per_image: Wall time of the teacher alone.
    """

    teacher_id: str
    teacher_sha256: str
    labelled_sha256: str
    images: tuple[ImageScore, ...]
    classes: tuple[ClassScore, ...]
    before: Reliability
    after: Reliability
    seconds_per_image: float

    @property
    def overall(self) -> ClassScore:
        """All images."""
        return self.classes[0]


def evaluate(
    teacher: Teacher,
    samples: Sequence[Labelled],
    attributes: Attributes,
    output: Path,
    *,
    batch: int,
    report: Callable[[str], None],
) -> Evaluation:
    """Run a teacher over labelled images and write what this module's docstring lists.

    Equal answers of the teacher give equal files, in whatever order the samples come, but for the seconds.

    Args:
        teacher: What is measured; run once over all, and again over the images shown.
        samples: At least one, of distinct names.
        attributes: Image -> attribute -> class; what is missing or None is of the class "unknown".
        output: The folder written; made if absent.
        batch: Images decoded and handed to the teacher at a time, at least 1.
        report: Called with a line of text every tenth of the way.

    Raises:
        LabelledError: A file cannot be decoded.
        EvaluationError: No sample, a name twice, an attribute of an image that is none of the samples, an attribute
            name that is no identifier or a column's already, or not one pixel that counts.
        TeacherError: An answer of the teacher that does not fit its image.
        ValueError: `batch` is below 1.
    """
    if batch < 1:
        raise ValueError(f"batch must be >= 1, got {batch}")
    ordered = sorted(samples, key=lambda sample: sample.name)
    names = _check_samples(ordered, attributes)
    output.mkdir(parents=True, exist_ok=True)
    (output / "evaluation.json").unlink(missing_ok=True)
    images, histogram, seconds = _measure(teacher, ordered, batch, report)
    if histogram.images == 0:
        raise EvaluationError(f"at least one pixel of {len(images)} images must count, all are ignored: mend ignore/")
    evaluation = Evaluation(
        teacher_id=teacher.id,
        teacher_sha256=teacher.sha256,
        labelled_sha256=labelled_sha256(ordered),
        images=images,
        classes=by_class(images, attributes, names),
        before=reliability(histogram),
        after=reliability(histogram, fit_temperature(histogram)),
        seconds_per_image=seconds / len(images),
    )
    write_atomically(output / "images.parquet", _parquet(images, attributes, names))
    write_atomically(output / "classes.csv", _class_csv(evaluation.classes))
    write_atomically(output / "reliability.csv", _reliability_csv(evaluation.before, evaluation.after))
    write_atomically(output / "reliability.png", reliability_plot(evaluation.before, evaluation.after))
    write_atomically(output / "overlays.jpg", _overlays(teacher, ordered, images, batch))
    write_atomically(output / "evaluation.json", (json.dumps(_record(evaluation), indent=2) + "\n").encode())
    report(f"evaluated {len(images)} images: IoU {_shown(evaluation.overall.scores['iou'])}, in {output}")
    return evaluation


def read_attributes(path: Path, names: Collection[str]) -> dict[str, dict[str, str | None]]:
    """Read a CSV (UTF-8, with a header) of one row per image: a column `name` or `image`, and one per attribute.

    Args:
        path: The file, at most 64 MiB.
        names: Those of the labelled images, file names without suffix; not all need a row.

    Returns:
        Image -> attribute -> class, None where a cell is empty.

    Raises:
        EvaluationError: A file that is absent, too large or no CSV; no column or two for the image; a column that
            stands twice or is no attribute's name; a row too short or long, of an unknown image, or a second of one.
    """
    rows = _read_csv(path)
    header = rows[0][1] if rows else []
    key = _key_column(path, header)
    columns = [name for name in header if name != key]
    _check_attributes(str(path), columns)
    known, found = frozenset(names), dict[str, dict[str, str | None]]()
    for line, row in rows[1:]:
        if len(row) != len(header):
            raise EvaluationError(
                f"{path} line {line}: must have {len(header)} cells as the header has, got {len(row)}"
            )
        cells = dict(zip(header, (cell.strip() for cell in row), strict=True))
        image = cells.pop(key)
        if image not in known:
            raise EvaluationError(
                f"{path} line {line}: {image!r} is no labelled image; write its file name without suffix or remove it"
            )
        if image in found:
            raise EvaluationError(f"{path} line {line}: {image!r} has a row already; remove one")
        found[image] = {name: cell or None for name, cell in cells.items()}
    return found


# --- Checking -----------------------------------------------------------------------------------------------------


def _read_csv(path: Path) -> list[tuple[int, list[str]]]:
    """The rows that are not empty, each with the number of its last line."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_ATTRIBUTE_BYTES + 1)
        if len(data) > MAX_ATTRIBUTE_BYTES:
            raise EvaluationError(f"{path}: a table of attributes must have at most {MAX_ATTRIBUTE_BYTES} bytes")
        reader = csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True)
        return [(reader.line_num, row) for row in reader if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise EvaluationError(f"{path}: cannot be read as CSV in UTF-8: {error}") from error


def _key_column(path: Path, header: Sequence[str]) -> str:
    keys = [name for name in header if name in ("name", "image")]
    if len(keys) != 1:
        raise EvaluationError(f"{path}: must have one column 'name' or 'image', has {', '.join(header) or 'none'}")
    return keys[0]


def _check_attributes(where: str, names: Sequence[str]) -> None:
    taken = {field.name for field in fields(ImageScore)} | {"image", "overall"}
    if len(names) > MAX_ATTRIBUTES:
        raise EvaluationError(f"{where}: must have at most {MAX_ATTRIBUTES} attributes, has {len(names)}")
    for name in names:
        if not name.isidentifier() or len(name) > 64:
            raise EvaluationError(
                f"{where}: attribute name {name!r} must be letters, digits and underscores, at most 64"
            )
        if name in taken or names.count(name) > 1:
            raise EvaluationError(f"{where}: column {name!r} is taken; rename the attribute")


def _check_samples(samples: Sequence[Labelled], attributes: Attributes) -> tuple[str, ...]:
    """The attributes' names, sorted."""
    names = [sample.name for sample in samples]
    if not names:
        raise EvaluationError("an evaluation needs at least one labelled image, got none")
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise EvaluationError(f"labelled images must have distinct names, {twice[0]!r} stands twice; remove one")
    strange = sorted(attributes.keys() - set(names))
    if strange:
        raise EvaluationError(f"attributes are given for {strange[0]!r}, which is no labelled image; remove them")
    found = tuple(sorted({name for classes in attributes.values() for name in classes}))
    _check_attributes("attributes", found)
    return found


# --- Measuring ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class _Seen:
    """One image with its truth and what the teacher said; arrays as `load_labelled` gives them."""

    name: str
    image: NDArray[np.uint8]
    truth: NDArray[np.bool_]
    ignore: NDArray[np.bool_]
    prediction: Prediction


def _see(teacher: Teacher, samples: Sequence[Labelled], batch: int) -> Iterator[tuple[list[_Seen], float]]:
    """Batches, each with the teacher's seconds; one is in memory at a time."""
    for start in range(0, len(samples), batch):
        part = samples[start : start + batch]
        loaded = [load_labelled(sample) for sample in part]
        began = time.perf_counter()
        try:
            predictions = teacher.predict([image for image, _, _ in loaded])
        except TeacherError as error:
            raise TeacherError(f"of the images {part[0].name!r} to {part[-1].name!r}, {error}") from error
        seconds = time.perf_counter() - began
        if len(predictions) != len(part):
            raise TeacherError(f"{teacher.id} gave {len(predictions)} answers for {len(part)} images")
        seen = []
        for sample, (image, truth, ignore), prediction in zip(part, loaded, predictions, strict=True):
            if prediction.probability.shape != truth.shape:
                sizes = f"{prediction.probability.shape} for an image of {truth.shape}"
                raise TeacherError(f"{sample.name!r}: {teacher.id} gave probabilities of {sizes}")
            seen.append(_Seen(name=sample.name, image=image, truth=truth, ignore=ignore, prediction=prediction))
        yield seen, seconds


def _measure(
    teacher: Teacher, samples: Sequence[Labelled], batch: int, report: Callable[[str], None]
) -> tuple[tuple[ImageScore, ...], Histogram, float]:
    rows: list[ImageScore] = []
    histogram, total = empty(), 0.0
    for seen, seconds in _see(teacher, samples, batch):
        before = 10 * len(rows) // len(samples)
        total += seconds
        for one in seen:
            rows.append(score(one.name, one.prediction, one.truth, one.ignore))
            histogram = histogram + count(one.prediction.probability, one.truth, one.ignore)
        if 10 * len(rows) // len(samples) > before:
            report(f"{len(rows)} of {len(samples)} images, {total / len(rows):.2f} s each")
    return tuple(rows), histogram, total


# --- Writing ------------------------------------------------------------------------------------------------------

_NUMBER = pa.float64()
_COLUMNS_OF_IMAGES = [
    pa.field("name", pa.string(), nullable=False),
    *(pa.field(name, _NUMBER) for name in METRICS),
    pa.field("label_confidence", _NUMBER, nullable=False),
    pa.field("boundary_uncertainty", _NUMBER, nullable=False),
    pa.field("persons", pa.int32()),
    pa.field("area_truth", _NUMBER),
    pa.field("area_found", _NUMBER),
    pa.field("ignored", _NUMBER, nullable=False),
]


def _parquet(images: Sequence[ImageScore], attributes: Attributes, names: Sequence[str]) -> bytes:
    schema = pa.schema([*_COLUMNS_OF_IMAGES, *(pa.field(name, pa.string()) for name in names)])
    rows = [asdict(image) | {name: attributes.get(image.name, {}).get(name) for name in names} for image in images]
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), out)
    return out.getvalue()


def _class_csv(classes: Sequence[ClassScore]) -> bytes:
    header = ["attribute", "class", "images"]
    for metric in METRICS:
        header += [metric, f"{metric}_low", f"{metric}_high", f"{metric}_null"]
    rows = []
    for one in classes:
        row: list[object] = [one.attribute, one.name, one.images]
        for metric in METRICS:
            score = one.scores[metric]
            row += [*map(_cell, (score.mean, score.low, score.high)), one.images - score.images]
        rows.append(row)
    return _csv(header, rows)


def _reliability_csv(before: Reliability, after: Reliability) -> bytes:
    header = ["when", "temperature", "low", "high", "share", "mean", "observed"]
    rows = [
        [when, *map(_cell, (measured.temperature, b.low, b.high)), f"{b.share:.6g}", _cell(b.mean), _cell(b.observed)]
        for when, measured in (("before", before), ("after", after))
        for b in measured.bins
    ]
    return _csv(header, rows)


def _csv(header: Sequence[str], rows: Sequence[Sequence[object]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue().encode()


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.6f}"


def _record(evaluation: Evaluation) -> dict[str, object]:
    images = evaluation.images
    counted = [image for image in images if image.iou is not None]
    return {
        "format": 1,
        "teacher": {"id": evaluation.teacher_id, "sha256": evaluation.teacher_sha256},
        "labelled_sha256": evaluation.labelled_sha256,
        "images": len(images),
        "images_wholly_ignored": len(images) - len(counted),
        "images_without_person": sum(image.area_truth == 0 for image in counted),
        "images_with_nothing_found": sum(image.area_found == 0 for image in counted),
        "overall": {metric: asdict(score) for metric, score in evaluation.overall.scores.items()},
        "boundary": {"ratio": BOUNDARY_RATIO, "image_border_is_boundary": True},
        "interval": {
            "level": LEVEL,
            "method": "bootstrap-t over images",
            "resamples": RESAMPLES,
            "seed": SEED,
            "least_images": LEAST_IMAGES,
        },
        "calibration": {
            "weights": "every image the same",
            "temperature": evaluation.after.temperature,
            "before": _calibration(evaluation.before),
            "after": _calibration(evaluation.after),
        },
        "seconds_per_image": round(evaluation.seconds_per_image, 4),
    }


def _calibration(measured: Reliability) -> dict[str, float]:
    return {"ece": measured.ece, "nll": measured.nll, "brier": measured.brier}


def _shown(score: Estimate) -> str:
    if score.low is None or score.high is None or score.mean is None:
        return f"{score.mean or 0.0:.4f}"
    return f"{score.mean:.4f} [{score.low:.4f}, {score.high:.4f}]"


# --- Showing ------------------------------------------------------------------------------------------------------


def choose(images: Sequence[ImageScore], each: int = SHOWN) -> list[tuple[str, ImageScore]]:
    """The images to look at, each with its place: the worst, the median and the best by IoU, none twice.

    All images, ranked, where there are no more than three times `each`; none that has no IoU. Of equal IoU, the
    smaller person in truth comes first.
    """
    ranked = sorted(
        (image for image in images if image.iou is not None),
        key=lambda image: (image.iou, image.area_truth, image.name),
    )
    if len(ranked) <= 3 * each:
        return [(f"{place} of {len(ranked)}", image) for place, image in enumerate(ranked, 1)]
    first = (len(ranked) - each) // 2
    starts = (("worst", 0), ("median", first), ("best", len(ranked) - each))
    return [(word, image) for word, start in starts for image in ranked[start : start + each]]


def _overlays(teacher: Teacher, samples: Sequence[Labelled], images: Sequence[ImageScore], batch: int) -> bytes:
    """The sheet; the images chosen are labelled once more, for no mask is kept."""
    chosen = choose(images)
    by_name = {sample.name: sample for sample in samples}
    tiles = []
    shown = _see(teacher, [by_name[image.name] for _, image in chosen], batch)
    pictures = (_picture(one) for seen, _ in shown for one in seen)
    for (word, image), drawn in zip(chosen, pictures, strict=True):
        tiles.append(picture.Tile(picture=drawn, caption=_caption(word, image)))
    return picture.sheet(tiles, columns=_COLUMNS, side=_SIDE, legend=picture.LEGEND)


def _picture(seen: _Seen) -> NDArray[np.uint8]:
    masks = [seen.prediction.probability >= 0.5, seen.truth, seen.ignore]
    small, (found, truth, ignore) = picture.shrink(seen.image, masks, _SIDE)
    return picture.overlay(small, found, truth, ignore)


def _caption(word: str, image: ImageScore) -> str:
    def two(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f}"

    return (
        f"{word}: {image.name}\n"
        f"IoU {two(image.iou)}  boundary {two(image.boundary_iou)}  sure {two(image.label_confidence)}\n"
        f"precision {two(image.precision)}  recall {two(image.recall)}"
    )
