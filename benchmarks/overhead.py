"""What Beam costs: CPU seconds of the probe, embed and label stages beside a plain loop that does the same work.

Usage: python -m benchmarks.overhead [--teacher FILE] [--frames N] [--rounds R]

Reads ``$CURATE_SHARED/data/clips`` and ``unlabelled``. Both sides run in turns, one thread each, in one process, after
one warm-up; the ratio of the smallest CPU times is printed. The plain loop decodes, hashes, describes, embeds, labels
with the same functions, in the same number of decoding passes, and writes nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
from rich.console import Console

from benchmarks.shared import SHARED
from manifests.mask import components, encode_mask, encode_soft
from pipeline import storage
from pipeline.attributes import computed_attributes
from pipeline.embed import Embed, EmbedConfig, descriptor, encode_jpeg, shrink
from pipeline.frames import ScanConfig, Tally, content_sha256, dhash64, fetch, scan, sniff
from pipeline.label import Label, LabelConfig, label_spans, resize_soft
from pipeline.probe import Probe, ProbeConfig, opener, probe_spans
from pipeline.runner import Runner
from pipeline.sources import list_sources
from pipeline.stage import Span, iter_tables
from pipeline.step import write_tables
from pipeline.threads import one_thread
from teachers.backend import TeacherConfig, load_teacher
from teachers.teacher import Teacher
from training.files import sha256_file

SCAN = ScanConfig()


def with_beam(sources: pa.Table, teacher: Path | None, frames: int, folder: Path) -> None:
    """The three stages as the main job runs them."""
    runner = Runner(workers=1, console=Console(quiet=True))
    root = str(folder / "stages")
    write_tables(folder, [sources])
    uri = str(folder / "part-00000-of-00001.parquet")
    spans = probe_spans(uri, sources.column("bytes").to_pylist(), ProbeConfig())
    probe = runner.run(root, Probe(config=SCAN), spans, ["a"])
    work = Embed(config=EmbedConfig(), scan=SCAN, weights_sha256=None)
    runner.run(root, work, [(Span(uri=u),) for u in probe.uris()], [probe.digest])
    if teacher is not None:
        chosen = pa.concat_tables(iter_tables(probe.uris())).slice(0, frames)
        (folder / "chosen").mkdir()
        write_tables(folder / "chosen", [chosen])
        config = LabelConfig()
        label = Label(
            config=config, scan=SCAN, run=TeacherConfig(), teacher=str(teacher), teacher_sha256=sha256_file(teacher)
        )
        where = str(folder / "chosen" / "part-00000-of-00001.parquet")
        runner.run(root, label, label_spans(where, chosen.num_rows, config), [probe.digest])


def plain_loop(uris: Sequence[str], teacher: Teacher | None, frames: int) -> int:
    """The same work without Beam, stages or files; returns how many frames were labelled."""
    labelled = 0
    for uri in uris:
        data = storage.read_bytes(uri)
        hashlib.sha256(data).digest()
        kind = sniff(data[: 1 << 20])
        if kind is None:
            continue
        wanted = []
        for frame in scan(opener(uri), uri, kind, SCAN, Tally()):
            content_sha256(frame.pixels)
            dhash64(frame.pixels)
            computed_attributes(frame.pixels, frame.motion)
            wanted.append(frame.index)
        for _, pixels in fetch(opener(uri), kind, wanted, SCAN):
            content_sha256(pixels)
            descriptor(pixels)
            encode_jpeg(shrink(pixels, EmbedConfig().thumbnail_side), 88)
        if teacher is not None and labelled < frames and wanted:
            labelled += _label(uri, kind, wanted[: frames - labelled], teacher)
    return labelled


def _label(uri: str, kind: str, wanted: list[int], teacher: Teacher) -> int:
    for _, pixels in fetch(opener(uri), kind, wanted, SCAN):
        content_sha256(pixels)
        prediction = teacher.predict([pixels])[0]
        mask = prediction.probability >= 0.5
        small = shrink(pixels, LabelConfig().student_side)
        encode_jpeg(small, 90)
        encode_soft(resize_soft(prediction.probability, *small.shape[:2]))
        encode_mask(mask)
        components(mask)
    return len(wanted)


def main() -> None:
    """Prints both sides and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--teacher", type=Path)
    parser.add_argument("--frames", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    values = parser.parse_args()
    one_thread()
    data = SHARED / "data"
    sources, _ = list_sources([str(data / "clips"), str(data / "unlabelled")])
    uris = sources.column("uri").to_pylist()
    teacher = load_teacher(values.teacher) if values.teacher else None
    plain_loop(uris[-20:], teacher, 2)
    beam, loop = [], []
    for _ in range(values.rounds):
        with tempfile.TemporaryDirectory() as folder:
            before = time.process_time()
            with_beam(sources, values.teacher, values.frames, Path(folder))
            beam.append(time.process_time() - before)
        before = time.process_time()
        plain_loop(uris, teacher, values.frames)
        loop.append(time.process_time() - before)
        print(f"Beam {beam[-1]:.2f} CPU s   plain loop {loop[-1]:.2f} CPU s")
    print(f"ratio of the smallest: {min(beam) / min(loop):.3f} (goal <= 1.15)")


if __name__ == "__main__":
    main()
