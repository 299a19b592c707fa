"""One run of `benchmarks.loader` in a process of its own: reads everything once, prints its figures as JSON.

Usage: python -m benchmarks.loader_process METHOD FOLDER BATCH
"""

# ruff: noqa: PLC0415 - a run imports its own method only, so that its memory is its own

from __future__ import annotations

import importlib
import json
import resource
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

BUFFER = 1024
IMPORTS = {
    "ours": ("students.data", "students.shards"),
    "webdataset": ("webdataset",),
    "tarfile": (),
    "datasets": ("datasets",),
}


def ours(folder: Path, batch: int) -> Iterator[int]:
    """Bytes of each sample, in the order of a schedule."""
    from students.data import bucket_sizes
    from students.shards import open_shards

    shards = open_shards(folder, verify=False)
    schedule = shards.schedule(sizes=bucket_sizes(256), batch=batch, seed=0)
    for samples in shards.read(schedule.batch(step)[1] for step in range(schedule.steps)):
        yield from (len(sample.image) + len(sample.mask) for sample in samples)


def webdataset(folder: Path, batch: int) -> Iterator[int]:
    """Bytes of each sample, tar files and a buffer shuffled."""
    from webdataset import WebDataset

    urls = sorted(str(path) for path in folder.glob("*.tar"))
    samples = WebDataset(urls, shardshuffle=len(urls), empty_check=False).shuffle(BUFFER)
    for group in samples.batched(batch, collation_fn=None):
        yield from (len(sample["jpg"]) + len(sample["png"]) for sample in group)


def plain_tar(folder: Path, batch: int) -> Iterator[int]:
    """Bytes of each sample, in the order of the files."""
    del batch
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path, "r|") as tar:
            sizes: dict[str, int] = {}
            for member in tar:
                file = tar.extractfile(member)
                kind = member.name.split(".")[-1]
                sizes[kind] = len(file.read()) if file else 0
                if kind == "png":
                    yield sizes["jpg"] + sizes["png"]


def datasets(folder: Path, batch: int) -> Iterator[int]:
    """Bytes of each sample, files and a buffer shuffled."""
    from datasets import Image, load_dataset

    paths = sorted(str(path) for path in folder.glob("shards/train/*.parquet"))
    stored = load_dataset("parquet", data_files=paths, split="train", streaming=True)
    for name in ("image", "mask", "ignore"):
        stored = stored.cast_column(name, Image(decode=False))
    for group in stored.shuffle(seed=0, buffer_size=BUFFER).iter(batch):
        pairs = zip(group["image"], group["mask"], strict=True)
        yield from (len(image["bytes"]) + len(mask["bytes"]) for image, mask in pairs)


METHODS = {"ours": ours, "webdataset": webdataset, "tarfile": plain_tar, "datasets": datasets}


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _peak_mb() -> float:
    """Peak of resident memory: of /proc, for `ru_maxrss` begins with that of the process which started this one."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def measure(method: str, folder: Path, batch: int) -> dict[str, float]:
    """Read everything once; samples, bytes, CPU and wall seconds of the reading, peak memory in MB."""
    for name in IMPORTS[method]:
        importlib.import_module(name)
    figures = {"imported": _peak_mb()}
    start, wall = _cpu(), time.perf_counter()
    samples = taken = 0
    for size in METHODS[method](folder, batch):
        samples += 1
        taken += size
    figures |= {"cpu": _cpu() - start, "wall": time.perf_counter() - wall, "peak": _peak_mb()}
    return figures | {"samples": samples, "bytes": taken} | (_opening(folder) if method == "ours" else {})


def _opening(folder: Path) -> dict[str, float]:
    from students.shards import open_shards

    taken = {}
    for name, verify in (("opened", False), ("hashed", True)):
        start = _cpu()
        open_shards(folder, verify=verify)
        taken[name] = _cpu() - start
    return taken


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))))
