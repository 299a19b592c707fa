"""The label stage: the teacher makes the pseudo ground truth of every chosen frame.

A part holds, for each frame, the full-size mask, and at student size the picture and the soft mask, so that students
need no source again. A frame that cannot be decoded any more keeps its row, without a label.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from manifests.mask import components, encode_mask, encode_soft
from manifests.schema import PERSON
from pipeline import storage
from pipeline.embed import encode_jpeg, frames_of, shrink
from pipeline.errors import InputError, StageError
from pipeline.frames import ScanConfig
from pipeline.known import MASK, MASK_CONFIDENCE
from pipeline.mask_attributes import MASK_ATTRIBUTES, mask_attributes
from pipeline.motion import Grid, decode_grid
from pipeline.stage import Output, Span, Task, not_identity, read_span
from teachers.backend import TeacherConfig, load_teacher
from teachers.teacher import Person, Prediction, Teacher, TeacherError

LABELLED = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("picture", pa.binary()),
        pa.field("soft", pa.binary()),
        pa.field("mask", pa.binary()),
        pa.field("mask_area_px", pa.int32()),
        pa.field("mask_components", pa.int16()),
        pa.field("label_confidence", pa.float32()),
        pa.field("boundary_uncertainty", pa.float32()),
        pa.field("n_persons", pa.int16()),
        pa.field("persons", pa.list_(pa.field("element", PERSON, nullable=False))),
        *(pa.field(MASK + name, pa.string()) for name in MASK_ATTRIBUTES),
        *(pa.field(MASK_CONFIDENCE + name, pa.float32()) for name in MASK_ATTRIBUTES),
        pa.field("fault", pa.string()),
    ]
)


_READ = ("sample_id", "source_uri", "media_kind", "frame_index", "content_sha256", "motion_grid")


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelConfig:
    """Settings of the label stage.

    Attributes:
        rows: frames per shard.
        batch: frames per call of the teacher; fixed, so that bits do not depend on the bundle.
        student_side: long side, in pixels, of the picture and soft mask kept for the students.
    """

    rows: int = 32
    batch: int = 8
    student_side: int = 256

    def __post_init__(self) -> None:
        for name, least in (("rows", 1), ("batch", 1), ("student_side", 64)):
            if getattr(self, name) < least:
                raise ValueError(f"label.{name} must be >= {least}, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """The work of the label stage; a task is a span of the table of chosen frames.

    Attributes:
        config: size of shards and of what students see.
        scan: how frames are decoded.
        run: how the teacher is run.
        teacher: its file.
        teacher_sha256: of the file.
        settings: digest of what ``run`` only names.
    """

    name: ClassVar[str] = "label"
    version: ClassVar[int] = 3
    libraries: ClassVar[tuple[str, ...]] = (
        "av", "numpy", "onnxruntime", "opencv-python-headless", "pillow", "pyarrow", "torch", "torchvision",
    )  # fmt: skip

    config: LabelConfig
    run: TeacherConfig
    scan: ScanConfig
    teacher: str = not_identity()
    teacher_sha256: str
    settings: str = ""

    def open(self) -> Callable[[Task], Output]:
        """Loads the teacher and gives the function that labels a task's frames."""
        with storage.local_copy(self.teacher) as path:
            teacher = load_teacher(Path(path), self.run)
        if teacher.sha256 != self.teacher_sha256:
            raise InputError(f"{self.teacher} has changed since the run was planned (sha256 {teacher.sha256})")
        return functools.partial(self._run, teacher)

    def _run(self, teacher: Teacher, task: Task) -> Output:
        span = task.spans[0]
        chosen = read_span(span, _READ)
        faults: list[dict[str, Any]] = []
        labels: dict[int, dict[str, Any]] = {}
        batch: list[tuple[int, NDArray[np.uint8]]] = []
        for item in frames_of(chosen, self.scan, faults, "label"):
            batch.append(item)
            if len(batch) == self.config.batch:
                labels |= self._label(teacher, chosen, batch)
                batch = []
        labels |= self._label(teacher, chosen, batch)
        ids = chosen.column("sample_id").to_pylist()
        absent = {"fault": "the frame could not be decoded again"}
        rows = [{"row": span.start + i, "sample_id": ids[i], **labels.get(i, absent)} for i in range(len(ids))]
        table = pa.Table.from_pylist(rows, schema=LABELLED)
        return Output(table=table, faults=faults, row_group_rows=64, plain=["picture", "soft", "mask"])

    def _label(
        self, teacher: Teacher, chosen: pa.Table, batch: Sequence[tuple[int, NDArray[np.uint8]]]
    ) -> dict[int, dict[str, Any]]:
        if not batch:
            return {}
        try:
            predictions = teacher.predict([pixels for _, pixels in batch])
        except TeacherError as error:
            uris = ", ".join(dict.fromkeys(chosen.column("source_uri").take([row for row, _ in batch]).to_pylist()))
            raise StageError(f"{error}; the images are frames of {uris}; try another teacher or precision") from error
        pairs = zip(batch, predictions, strict=True)
        return {
            row: _columns(pixels, prediction, self.config.student_side, _grid(chosen, row))
            for (row, pixels), prediction in pairs
        }


def label_spans(uri: str, rows: int, config: LabelConfig) -> list[tuple[Span, ...]]:
    """The spans of the table of chosen frames, one per task."""
    starts = range(0, rows, config.rows)
    return [(Span(uri=uri, start=start, stop=min(start + config.rows, rows)),) for start in starts]


def resize_soft(soft: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """A soft mask at another size: area mean when it shrinks, bilinear when it grows."""
    method = cv2.INTER_AREA if height < soft.shape[0] else cv2.INTER_LINEAR
    return np.clip(cv2.resize(soft, (width, height), interpolation=method), 0, 1).astype(np.float32)


def _grid(chosen: pa.Table, row: int) -> Grid | None:
    """How the video moves at a chosen frame; None for stills, first frames, and tables that do not have it."""
    data = chosen.column("motion_grid")[row].as_py() if "motion_grid" in chosen.column_names else None
    return None if data is None else decode_grid(data)


def _columns(pixels: NDArray[np.uint8], prediction: Prediction, side: int, grid: Grid | None) -> dict[str, Any]:
    mask = prediction.probability >= 0.5
    picture = shrink(pixels, side)
    told = mask_attributes(pixels, prediction.probability, prediction.persons, grid)
    return {
        "picture": encode_jpeg(picture, 90),
        "soft": encode_soft(resize_soft(prediction.probability, *picture.shape[:2])),
        "mask": encode_mask(mask),
        "mask_area_px": int(mask.sum()),
        "mask_components": min(components(mask), 32767),
        "label_confidence": prediction.label_confidence,
        "boundary_uncertainty": prediction.boundary_uncertainty,
        "n_persons": None if prediction.persons is None else len(prediction.persons),
        "persons": None if prediction.persons is None else [_person(person) for person in prediction.persons],
        **{MASK + name: value for name, (value, _) in told.items()},
        **{MASK_CONFIDENCE + name: confidence for name, (_, confidence) in told.items()},
    }


def _person(person: Person) -> dict[str, float]:
    x0, y0, x1, y1 = person.box
    return {"x0": x0, "y0": y0, "x1": x1, "y1": y1, "score": person.score}
