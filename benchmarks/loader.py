"""What reading training samples costs before anything is decoded: ours beside WebDataset, tarfile and datasets.

Usage: python -m benchmarks.loader [--samples N] [--size WxH] [--batch N] [--rounds N] [--folder DIR]

The same encoded images and masks lie in shards of a release, in tar files, and are read once each in a random order by
every method: ours in the order of its schedule with page checksums verified, the others through a shuffle buffer of
1,024 samples (tarfile in the order of the file). Every run is a process of its own on one thread; rounds take turns,
medians are shown. CPU seconds are user and system time of the reading alone, files in the page cache.
Memory is the peak of resident memory, and in brackets what it lies above the process after its imports (torch among
them, for ours and WebDataset). Ours includes opening the release: listing, footers and index; the sha256 of every file
comes once before a training and is shown apart.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from benchmarks.shared import SHARED
from manifests.mask import encode_mask, mask_sha256
from manifests.release import Counts, FileEntry, Release, render_release, write_release
from manifests.shard import PIXELS, ROW_GROUP_ROWS, ShardRow, aspect_bucket, encode_parquet, shard_table

SHARD_ROWS = 2048
TITLES = {
    "ours": "ours, page checksums on",
    "webdataset": "WebDataset, shuffle 1,024",
    "tarfile": "tarfile, in order",
    "datasets": "datasets streaming, shuffle 1,024",
}
PICTURES = 128
"""Different pictures; samples repeat their bytes, which no format packs."""

Picture = tuple[bytes, bytes, bytes]
"""An image as JPEG, its mask as PNG, and the mask's hash."""


def draw_pictures(width: int, height: int) -> list[Picture]:
    """Photographs of the shared folder where it is there, else smooth noise; with an ellipse as mask."""
    rng = np.random.default_rng(0)
    paths = sorted((SHARED / "data" / "images").glob("*.jpg"))[:PICTURES]
    pictures = []
    for number in range(PICTURES):
        image = cv2.imread(str(paths[number % len(paths)])) if paths else None
        if image is None:
            image = rng.integers(0, 255, (height // 16, width // 16, 3), np.uint8)
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)
        mask = np.zeros((height, width), np.uint8)
        cv2.ellipse(mask, (width // 2, height // 2), (40 + number, 90), number, 0, 360, 1, -1)
        pictures.append((_jpeg(image), encode_mask(mask > 0), mask_sha256(mask > 0)))
    return pictures


def _jpeg(image: np.ndarray) -> bytes:
    """The image with noise, at the quality that comes nearest to 70 kB."""
    sizes = {quality: bytes(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]) for quality in _STEPS}
    return min(sizes.values(), key=lambda data: abs(len(data) - 70_000))


_STEPS = (60, 75, 80, 85, 88, 90, 92, 94, 96, 98)


def write_data(folder: Path, samples: int, width: int, height: int) -> None:
    """Write the release and the tar files."""
    pictures = draw_pictures(width, height)
    order = np.random.default_rng(1).integers(0, len(pictures), samples)
    starts = range(0, samples, SHARD_ROWS)
    entries = []
    for number, start in enumerate(starts):
        chosen = [(index, pictures[order[index]]) for index in range(start, min(start + SHARD_ROWS, samples))]
        rows = [_row(index, picture, width, height) for index, picture in chosen]
        data = encode_parquet(shard_table(rows), row_group_rows=ROW_GROUP_ROWS, plain=PIXELS)
        path = f"shards/train/{number:05d}-of-{len(starts):05d}.parquet"
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
        entries.append(
            FileEntry(
                path=path,
                bytes=len(data),
                sha256=hashlib.sha256(data).hexdigest(),
                rows=len(rows),
                min_id=rows[0].sample_id,
                max_id=rows[-1].sample_id,
                schema="shard",
            )
        )
        _write_tar(folder / f"{number:05d}.tar", chosen)
    write_release(folder, render_release(_release(samples, tuple(entries))))


def _row(index: int, picture: Picture, width: int, height: int) -> ShardRow:
    return ShardRow(
        sample_id=f"{index:032x}",
        image_jpeg=picture[0],
        mask_png=picture[1],
        ignore_png=None,
        width=width,
        height=height,
        aspect_bucket=aspect_bucket(width, height),
        weight=1.0,
        label_source="pseudo",
        label_confidence=0.5,
        content_sha256=hashlib.sha256(str(index).encode()).digest(),
        mask_sha256=picture[2],
    )


def _write_tar(path: Path, samples: list[tuple[int, Picture]]) -> None:
    with tarfile.open(path, "w") as tar:
        for index, (image, mask, _) in samples:
            about = json.dumps({"weight": 1.0, "label_source": "pseudo"}).encode()
            for kind, data in (("jpg", image), ("json", about), ("png", mask)):
                entry = tarfile.TarInfo(f"{index:032x}.{kind}")
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))


def _release(samples: int, files: tuple[FileEntry, ...]) -> Release:
    return Release(
        name="loader",
        schemas={"release": "1.0", "manifest": "1.0", "shard": "1.0"},
        config_fingerprint="0" * 64,
        parents=(),
        run_id="loader",
        tool={"version": "0"},
        packages={},
        seed=0,
        inputs={},
        models=(),
        counts=Counts(read=samples, undecodable=0, duplicate=0, not_sampled=0, dropped=0, held=0, kept=samples),
        splits={"train": samples},
        cells={},
        files=files,
        erasures=(),
    )


def _run(method: str, folder: Path, batch: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.loader_process", method, str(folder), str(batch)]
    threads = {
        "OMP_NUM_THREADS": "1",
        "ARROW_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(folder),
    }
    done = subprocess.run(command, env={**os.environ, **threads}, stdout=subprocess.PIPE, text=True, check=True)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def _table(found: dict[str, list[dict[str, float]]]) -> Iterator[str]:
    def median(method: str, name: str) -> float:
        return statistics.median(run[name] for run in found[method])

    yield "| method | samples / CPU s | lowest to highest | beside WebDataset | peak MB (above imports) |"
    yield "|---|---|---|---|---|"
    rates = {method: [run["samples"] / run["cpu"] for run in runs] for method, runs in found.items()}
    for method, runs in rates.items():
        middle = statistics.median(runs)
        peak, imported = median(method, "peak"), median(method, "imported")
        yield (
            f"| {TITLES[method]} | {middle:,.0f} | {min(runs):,.0f} to {max(runs):,.0f} "
            f"| {middle / statistics.median(rates['webdataset']):.2f} | {peak:.0f} ({peak - imported:.0f}) |"
        )
    samples, opened, hashed = (median("ours", name) for name in ("samples", "opened", "hashed"))
    yield f"\nOpening {samples:,.0f} samples: {opened:.2f} CPU s, with the sha256 of every file {hashed:.2f} CPU s."


def main() -> None:
    """Write the data, run every method, print the table."""
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=6000)
    parser.add_argument("--size", default="640x360", help="width x height of the images")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the data is written (needs 0.3 MB per sample); temporary")
    options = parser.parse_args()
    width, height = (int(side) for side in options.size.split("x"))
    if min(options.samples, options.batch, options.rounds) < 1 or min(width, height) < 16:
        parser.error("--samples, --batch and --rounds must be >= 1, --size at least 16x16")
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        write_data(folder, options.samples, width, height)
        found: dict[str, list[dict[str, float]]] = {method: [] for method in TITLES}
        for _ in range(options.rounds):
            for method, runs in found.items():
                runs.append(_run(method, folder, options.batch))
    read = {(run["samples"], run["bytes"]) for runs in found.values() for run in runs}
    if len(read) != 1:
        raise SystemExit(f"the methods did not read the same samples and bytes: {sorted(read)}")
    samples, taken = read.pop()
    print(f"{samples:,.0f} samples of {taken / samples / 1000:.1f} kB (image and mask), batches of {options.batch}")
    print("\n".join(_table(found)))


if __name__ == "__main__":
    main()
