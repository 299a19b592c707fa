"""Contact sheets of a run: ten frames of each verdict, with the teacher's outline (red) and the student's (blue).

Usage: python -m benchmarks.verdict_sheet OUTPUT_OF_A_RUN FOLDER_FOR_PNGS

For a look by eye: does the picture show what the verdict, its reasons and its scores say? Ignored pixels are yellow,
the published mask of a corrected label is green.
"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from manifests.mask import decode_soft
from pipeline.embed import decode_jpeg
from students.agreement import correct

TILE = 256
MOST = 10


def latest(root: Path, stage: str, kind: str = "part") -> pa.Table:
    """All parts of the newest finished folder of a stage."""
    folders = sorted((root / "stages" / stage).glob("*/_MANIFEST.json"), key=lambda p: p.stat().st_mtime)
    parts = sorted(folders[-1].parent.glob(f"{kind}-*.parquet"))
    return pa.concat_tables([pq.read_table(part) for part in parts])


def outline(picture: NDArray[np.uint8], mask: NDArray[np.bool_], colour: tuple[int, int, int]) -> None:
    """Draws the contour of a mask."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, contours, -1, colour, 1)


def tile(label: dict[str, object], score: dict[str, object], verdict: dict[str, object]) -> NDArray[np.uint8]:
    """One frame with its outlines and scores, (TILE + 48, TILE, 3)."""
    picture = decode_jpeg(bytes(label["picture"])).copy()  # type: ignore[arg-type]
    teacher = decode_soft(bytes(label["soft"]), 1 << 28) >= 0.5  # type: ignore[arg-type]
    if score["student"] is not None:
        soft = decode_soft(bytes(score["student"]), 1 << 28)  # type: ignore[arg-type]
        if verdict["verdict"] == "correct":
            fixed, ignore = correct(teacher, soft)
            picture[ignore] = (0.5 * picture[ignore] + 0.5 * np.array([255, 255, 0])).astype(np.uint8)
            outline(picture, fixed, (0, 255, 0))
        outline(picture, soft >= 0.5, (60, 120, 255))
    outline(picture, teacher, (255, 40, 40))
    canvas = np.zeros((TILE + 48, TILE, 3), np.uint8)
    canvas[: picture.shape[0], : picture.shape[1]] = picture[:TILE, :TILE]
    iou = "-" if score["student_iou"] is None else f"{score['student_iou']:.2f}"
    q = "-" if verdict["q"] is None else f"{verdict['q']:.2f}"
    lines = [f"{verdict['verdict']} q {q} iou {iou} w {verdict['weight']:.2f}", "; ".join(verdict["reasons"])[:60]]  # type: ignore[arg-type]
    lines += [f"miss {score['miss'] or 0:.2f} extra {score['extra'] or 0:.2f} stab {score['stability'] or 0:.3f}"]
    for i, line in enumerate(lines):
        cv2.putText(canvas, line, (2, TILE + 13 + 15 * i), cv2.FONT_HERSHEY_SIMPLEX, 0.36, (255, 255, 255), 1)
    return canvas


def main() -> None:
    """Writes one PNG per verdict."""
    root, target = Path(sys.argv[1]), Path(sys.argv[2])
    target.mkdir(parents=True, exist_ok=True)
    labels, scores, verdicts = (latest(root, s).to_pylist() for s in ("label", "score", "verdict"))
    for kind in ("keep", "weight", "correct", "hold", "drop"):
        rows = [i for i, v in enumerate(verdicts) if v["verdict"] == kind and labels[i]["picture"] is not None]
        rows = sorted(rows, key=lambda i: verdicts[i]["sample_id"])[:MOST]
        tiles = [tile(labels[i], scores[i], verdicts[i]) for i in rows]
        print(f"{kind}: {len(rows)} shown")
        if tiles:
            tiles += [np.zeros_like(tiles[0])] * (-len(tiles) % 5)
            sheet = np.concatenate([np.concatenate(tiles[i : i + 5], axis=1) for i in range(0, len(tiles), 5)])
            cv2.imwrite(str(target / f"{kind}.png"), sheet[:, :, ::-1])


if __name__ == "__main__":
    main()
