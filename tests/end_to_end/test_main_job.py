"""The main job on a drawn world: from videos to a verified release, whatever happens on the way."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import datasets
import pyarrow.parquet as pq
import pytest

from manifests.release import read_release
from manifests.verify import verify_release
from pipeline.cli import main
from pipeline.storage import lock
from pipeline.world import read_truth
from tests.end_to_end.conftest import TARGET, arguments, contents


@pytest.fixture(scope="module")
def output(world: Path, config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("output") / "out"
    assert main(arguments(world, config, folder, "--workers", "2")) == 0
    return folder


def release_of(output: Path) -> Path:
    (folder,) = (output / "releases").iterdir()
    return folder


def test_release_verifies_and_every_item_is_counted_once(output: Path) -> None:
    folder = release_of(output)
    assert verify_release(folder) == []
    counts = read_release(folder).counts
    assert counts.kept + counts.held + counts.dropped == TARGET
    lost = counts.undecodable + counts.duplicate + counts.not_sampled
    assert counts.read == lost + TARGET


def test_verify_command_names_a_flipped_byte(output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(release_of(output), copy)
    assert main(["verify", str(copy)]) == 0
    shard = next(iter(sorted((copy / "shards").rglob("*.parquet"))))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    assert main(["verify", str(copy)]) == 1
    assert str(shard.relative_to(copy)) in capsys.readouterr().err


def test_shards_open_as_pictures_in_datasets(output: Path, tmp_path: Path) -> None:
    files = sorted(str(p) for p in (release_of(output) / "shards").rglob("*.parquet"))
    rows = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path))
    assert len(rows) >= 1
    for row in rows:
        assert row["image"].size == row["mask"].size == (row["width"], row["height"])
        assert row["image"].mode == "RGB"
        assert row["mask"].mode == "1"


def test_manifest_rows_point_into_the_drawn_world(output: Path, world: Path) -> None:
    rows = [
        r for p in sorted((release_of(output) / "manifest").glob("*.parquet")) for r in pq.read_table(p).to_pylist()
    ]
    given = {line.split(",")[0] for line in (world / "attributes.csv").read_text().splitlines()[1:]}
    for row in rows:
        source = Path(row["source_uri"])
        assert source.name in given
        suffix = ".npz" if source.suffix == ".mp4" else ".png"
        truth = read_truth(world / "truth" / f"{source.stem}{suffix}")
        assert truth.shape[1:] == (row["height"], row["width"])
        assert row["frame_index"] < len(truth)
        tone = row["attr"]["apparent_skin_tone"]
        assert (tone["provenance"] == "model") == (tone["confidence"] is not None) == (tone["source_id"] == "mask")
        assert row["attr"]["lighting_level"]["provenance"] in ("source", "model")
        assert 0 < row["inclusion_prob"] <= 1
        stands_for = row["sampling_weight"] * row["inclusion_prob"]
        assert stands_for == pytest.approx(round(stands_for))
        assert stands_for >= 1 - 1e-9


def test_done_again_is_done_at_once_and_the_same(world: Path, config: Path, output: Path) -> None:
    before = contents(output)
    stages = {p: p.stat().st_mtime_ns for p in (output / "stages").rglob("*.parquet")}
    assert main(arguments(world, config, output)) == 0
    assert contents(output) == before
    assert {p: p.stat().st_mtime_ns for p in (output / "stages").rglob("*.parquet")} == stages


@pytest.mark.parametrize("more", [("--workers", "1"), ("--workers", "3", "--", "--direct_runner_bundle_repeat=2")])
def test_workers_and_replayed_bundles_change_no_byte(
    world: Path, config: Path, output: Path, tmp_path: Path, more: tuple[str, ...]
) -> None:
    assert main(arguments(world, config, tmp_path / "other", *more)) == 0
    assert contents(tmp_path / "other") == contents(output)


def test_another_seed_chooses_other_frames(world: Path, config: Path, output: Path, tmp_path: Path) -> None:
    shutil.copytree(output / "stages", tmp_path / "other" / "stages")
    assert main(arguments(world, config, tmp_path / "other", "--seed", "1")) == 0
    assert contents(tmp_path / "other")["release.json"] != contents(output)["release.json"]


def test_killed_at_random_moments_it_ends_with_the_same_bytes(
    world: Path, config: Path, output: Path, tmp_path: Path
) -> None:
    rng = random.Random(7)
    command = [sys.executable, "-m", "pipeline.cli", *arguments(world, config, tmp_path / "killed", "--workers", "2")]
    for _ in range(3):
        process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
        try:
            process.wait(rng.uniform(6, 16))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for folder in (tmp_path / "killed" / "releases").glob("*"):
            assert not (folder / "release.json").exists() or verify_release(folder) == []
    assert subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode == 0
    assert contents(tmp_path / "killed") == contents(output)


def test_target_above_what_exists_fails_and_keeps_what_was_done(
    world: Path, config: Path, output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(output / "stages", tmp_path / "other" / "stages")
    flags = arguments(world, config, tmp_path / "other")
    flags[flags.index("--target-size") + 1] = "100k"
    assert main(flags) == 1
    said = capsys.readouterr().err
    assert "--target-size 100000 is above what exists" in said
    assert "group 0:" in said
    cells = json.loads((tmp_path / "other" / "cells.json").read_text())
    assert f"{sum(cells.values())} different frames" in said
    assert list((tmp_path / "other" / "stages" / "assign").glob("*/_MANIFEST.json"))


def test_too_many_broken_sources_fail_and_are_named(
    world: Path, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(world / "unlabelled", tmp_path / "in")
    for n in range(4):
        (tmp_path / "in" / f"broken_{n}.mp4").write_bytes(b"")
    flags = ["--input", str(tmp_path / "in"), "--labelled", str(world / "labelled"), "--output", str(tmp_path / "out")]
    assert main([*flags, "--target-size", "5", "--config", str(config)]) == 1
    said = capsys.readouterr().err
    assert "4 of 24 sources are broken" in said
    assert "broken_0.mp4" in said
    faults = json.loads((tmp_path / "out" / "quarantine.json").read_text())
    assert {Path(f["source"]).name for f in faults} >= {f"broken_{n}.mp4" for n in range(4)}


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda job: job.update(input="nowhere"), "does not exist"),
        (lambda job: job.update(labelled="nowhere"), "--labelled"),
        (lambda job: Path(job["output"]).write_text("a file"), "is a file"),
        (lambda job: job.update(teacher="nowhere.safetensors"), "--teacher"),
    ],
)
def test_bad_arguments_are_refused_before_any_work(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], break_it: object, message: str
) -> None:
    job = {"input": str(world / "unlabelled"), "labelled": str(world / "labelled"), "output": str(tmp_path / "out")}
    break_it(job)  # type: ignore[operator]
    flags = [word for name, value in job.items() for word in (f"--{name}", value)]
    assert main([*flags, "--target-size", "5"]) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.rglob("part-*.parquet"))


def test_a_full_disk_is_named_and_the_run_goes_on_from_there(
    world: Path, config: Path, output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mount = tmp_path / "small"
    mount.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(mount)], check=False).returncode:
        pytest.skip("no right to mount a small disk here")
    try:
        assert main(arguments(world, config, mount / "out")) == 1
        said = capsys.readouterr().err
        assert "No space left on device" in said or "bytes free" in said
        subprocess.run(["mount", "-o", "remount,size=300m", str(mount)], check=True)
        assert main(arguments(world, config, mount / "out")) == 0
        assert contents(mount / "out") == contents(output)
    finally:
        subprocess.run(["umount", "-l", str(mount)], check=True)  # lazily: weights stay mapped in this process


def test_plan_prints_costs_and_writes_nothing(
    world: Path, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(world, config, tmp_path / "out", "--plan")) == 0
    said = capsys.readouterr().out
    assert all(word in said for word in ("probe", "embed", "publish", "CPU hours"))
    assert not (tmp_path / "out").exists()


def test_a_second_run_on_one_output_is_refused_while_the_first_runs(
    world: Path, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    with lock(str(tmp_path / "out")):
        assert main(arguments(world, config, tmp_path / "out")) == 1
    assert "another run is using" in capsys.readouterr().err


def test_an_output_inside_an_input_is_refused(
    world: Path, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(world / "unlabelled", tmp_path / "in")
    flags = arguments(world, config, tmp_path / "in" / "out")
    flags[flags.index("--input") + 1] = str(tmp_path / "in")
    assert main(flags) == 1
    assert "is inside --input" in capsys.readouterr().err


def test_two_rounds_choose_by_what_masks_tell_and_end_with_the_same_bytes(
    world: Path, config: Path, tmp_path: Path
) -> None:
    told = tmp_path / "curate.toml"
    told.write_text(
        config.read_text()
        + '\n[select]\nrounds = 2\noversample = 1.3\nper_source = 3\nattributes = ["subject_scale", "sharpness"]\n'
        + 'pairs = [["subject_scale", "sharpness"]]\n[select.targets]\nsharpness = "proportional"\n'
        + "subject_scale = { small = 1, medium = 2, large = 1 }\n"
    )
    few = ["--target-size", "12"]
    assert main([*arguments(world, told, tmp_path / "one"), *few]) == 0
    folder = release_of(tmp_path / "one")
    assert verify_release(folder) == []
    rows = [row for path in sorted(folder.glob("[md]*/*.parquet")) for row in pq.read_table(path).to_pylist()]
    assert len(rows) == 12
    assert {row["sampling_round"] for row in rows} == {2}
    assert max(Counter(row["source_uri"] for row in rows).values()) <= 3
    assert all(0 < row["inclusion_prob"] <= 1 for row in rows)
    assert all(row["sampling_weight"] >= 1 / row["inclusion_prob"] - 1e-9 for row in rows)
    page = (tmp_path / "one" / "selection.html").read_text()
    assert "subject_scale" in page
    assert main([*arguments(world, told, tmp_path / "two", "--workers", "2"), *few]) == 0
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
