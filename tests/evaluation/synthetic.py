"""Made-up evaluations for the tests of the report: the columns are those of a real one, the numbers are random."""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from evaluation.estimates import Settings
from evaluation.fairness import Fairness, analyse
from evaluation.groups import Videos
from evaluation.measures import measure_of
from evaluation.report import ReportTables
from evaluation.taxonomy import Taxonomy

Rows = list[dict[str, Any]]

METRICS = ("iou", "boundary_iou", "boundary_iou_interior", "boundary_f", "warped_masked", "adjacent_excess", "dtssd")
TRUE = ("adjacent_truth", "warped_truth", "warped_masked_truth", "dtssd")
REGION = ("iou", "boundary_iou", "boundary_iou_interior", "boundary_f")
FLOW = ("warped", "warped_masked", "warped_truth", "warped_masked_truth", "valid_share")


def frame_rows(
    name: str, level: float, rng: np.random.Generator, count: int, *, labelled: bool = True, flow: bool = True
) -> Rows:
    """Frames of one video around a level of IoU, with one cut in the middle."""
    rows: Rows = []
    drift = 0.02 * np.sin(np.arange(count) / 9) + 0.01 * rng.standard_normal(count)
    for at in range(count):
        iou = float(np.clip(level + drift[at] - (0.3 if rng.random() < 0.01 else 0) - 0.1 * (at < 2), 0, 1))
        follows = at > 0 and at != count // 2
        steady = float(np.clip(0.95 + drift[at], 0, 1)) if follows else None
        truth = float(np.clip(0.97 + drift[at] / 2, 0, 1)) if follows else None
        row: dict[str, Any] = {
            "video": name, "index": at, "seconds": at / 30, "labelled": labelled, "follows": follows,
            "iou": iou, "boundary_iou": iou**3, "boundary_iou_interior": iou**3.5, "boundary_f": iou**2,
            "band_width": 15, "area_truth": 0.3, "area_found": 0.31,
            "adjacent": steady, "adjacent_truth": truth, "warped": steady, "warped_masked": steady,
            "warped_truth": truth, "warped_masked_truth": truth, "valid_share": 0.9,
            "dtssd": 1.5 + float(abs(drift[at])) if follows else None,
        }  # fmt: skip
        absent = (() if labelled else (*REGION, *TRUE, "area_truth")) + (() if flow else FLOW)
        rows.append(row | dict.fromkeys(absent, float("nan")))
    return rows


def video_row(frames: Rows, subject: str | None) -> dict[str, Any]:
    """The row of one video from those of its frames."""
    keys = (*REGION, *FLOW, "adjacent", "adjacent_truth", "dtssd")
    means = {
        key: float(np.mean(known))
        if (known := [r[key] for r in frames if r[key] is not None and r[key] == r[key]])
        else None
        for key in keys
    }
    labelled = sum(row["labelled"] for row in frames)
    row: dict[str, Any] = {
        "video": frames[0]["video"], "subject_id": subject, "frames": len(frames),
        "pairs": sum(row["follows"] for row in frames), "labelled": labelled, "fps": 30.0,
        "seconds_per_frame": 0.0123, "vc8": 0.93 if labelled else None, "vc16": 0.9 if labelled else None,
        "pairs_excluded": {"apart": 1, "no_flow": 0, "not_believed": 0},
        "worst_frames": tuple(sorted(range(len(frames)), key=lambda at: frames[at]["iou"])[:3]),
        "lag_loss": [0.02, 0.04, 0.06, 0.08, 0.1] if labelled else None,
    }  # fmt: skip
    for key, of in (("adjacent_excess", "adjacent"), ("warped_excess", "warped_masked")):
        pair = means[of], means[f"{of}_truth"]
        row[key] = None if None in pair else pair[1] - pair[0]  # type: ignore[operator]
    return row | means


def audit(videos: Rows, attributes: Mapping[str, list[str | None]], taxonomy: Taxonomy, **more: Any) -> Fairness:
    """The audit of made-up videos."""
    return analyse(as_videos(videos, attributes), taxonomy, Settings(missing="exclude", **more))


def as_videos(videos: Rows, attributes: Mapping[str, list[str | None]]) -> Videos:
    """The columns of the audit."""
    return Videos(
        names=[row["video"] for row in videos],
        scores={m: np.array([np.nan if row[m] is None else row[m] for row in videos], float) for m in METRICS},
        attributes=attributes,
        subjects=[row["subject_id"] for row in videos],
        ranges={m: measure_of(m).span for m in METRICS},
    )


def large(
    taxonomy: Taxonomy, count: int = 100, people: int = 70, frames: int = 150, seed: int = 0
) -> tuple[Rows, Rows, dict[str, list[str | None]]]:
    """Frames, videos and attributes; people of the last class of the first category score lower."""
    rng = np.random.default_rng(seed)
    owner = np.arange(count) % people
    attributes: dict[str, list[str | None]] = {}
    for category in taxonomy.categories:
        size = people if category.level == "subject" else count
        drawn = rng.choice([*category.classes, "unknown"], size, p=_odds(len(category.classes)))
        values = drawn[owner] if category.level == "subject" else drawn
        attributes[category.name] = [None if value == "unknown" else str(value) for value in values]
    first = taxonomy.categories[0]
    level = np.random.default_rng(1).normal(0.92, 0.015, people)[owner]
    level -= 0.06 * (np.array(attributes[first.name]) == first.classes[0])
    every: Rows = []
    videos: Rows = []
    for at in range(count):
        rows = frame_rows(f"clip_{at:03d}", float(min(level[at] + rng.normal(0, 0.01), 0.99)), rng, frames)
        every += rows
        videos.append(video_row(rows, f"person_{owner[at]:02d}"))
    return every, videos, attributes


def _odds(classes: int) -> list[float]:
    odds = [0.95 * (0.5 + 0.5 * (at == 0)) for at in range(classes)]
    return [0.95 * odd / sum(odds) for odd in odds] + [0.05]


def picture(seed: int = 0, side: int = 64) -> bytes:
    """A small JPEG."""
    out = io.BytesIO()
    noise = np.random.default_rng(seed).integers(0, 255, (side // 4, side // 2, 3)).astype(np.uint8)
    Image.fromarray(noise).resize((side * 2, side)).save(out, "JPEG", quality=60)
    return out.getvalue()


def tables(frames: Rows, videos: Rows, **more: Any) -> ReportTables:
    """Tables with a model and settings."""
    given: dict[str, Any] = {
        "frames": frames,
        "videos": videos,
        "settings": {"measure": {"threshold": 0.5, "ratio": 0.02}, "versions": {"numpy": "2.0"}, "files": ["a", "b"]},
        "model": {"id": "student-s", "sha256": "ab" * 32},
    }
    return ReportTables(**(given | more))
