"""The main job on real clips and photographs, where they are."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq

from manifests.verify import verify_release
from pipeline.cli import main


def test_real_clips_and_photographs_become_a_release(data: Path, config: Path, tmp_path: Path) -> None:
    clips = [str(data / "clips" / name) for name in ("asl_eat.mp4", "odd_rotate90_meta.mp4", "odd_vfr.mp4")]
    flags = ["--input", *clips, "--input", str(data / "unlabelled" / "[a-c]*"), "--labelled", str(data)]
    flags += ["--output", str(tmp_path), "--target-size", "30", "--config", str(config)]
    assert main(flags) == 0
    (release,) = (tmp_path / "releases").iterdir()
    assert verify_release(release) == []
    tables = [pq.read_table(p) for kind in ("manifest", "dropped") for p in sorted((release / kind).glob("*.parquet"))]
    rows = [row for table in tables for row in table.to_pylist()]
    assert len(rows) == 30
    assert len({row["source_uri"] for row in rows}) >= 10
    turned = [row for row in rows if row["source_uri"].endswith("odd_rotate90_meta.mp4")]
    assert all(row["height"] > row["width"] and row["exif_orientation"] != 1 for row in turned)


def test_bad_files_are_set_aside_and_the_run_goes_on(data: Path, config: Path, tmp_path: Path) -> None:
    flags = ["--input", str(data / "bad"), "--labelled", str(data), "--output", str(tmp_path), "--target-size", "6"]
    flags += ["--config", str(config)]
    assert main(flags) == 1
    assert main([*flags, "--max-bad-fraction", "1"]) == 0
    (release,) = (tmp_path / "releases").iterdir()
    assert verify_release(release) == []
