"""Laws of reading after an erasure: what was forgotten does not come back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from manifests.erasures import FOLDER, KEY
from pipeline.choice import embed_work, survey
from pipeline.errors import InputError
from pipeline.job import Job
from pipeline.stage import Span, iter_tables
from tests.manifests.remains import remains
from tests.pipeline.forgetting import (
    AT,
    forgotten,
)
from tests.pipeline.media import moving, texture, video


def job(root: Path, inputs: Path) -> Job:
    return Job(inputs=(str(inputs),), labelled=root, output=str(root), target=4, max_bad=0.0)


def probed(root: Path, inputs: Path) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """The rows and counts of the real first stages; the quarantine is in the root."""
    stages = survey(job(root, inputs))
    rows = [row for table in iter_tables(stages["probe"].uris()) for row in table.to_pylist()]
    counts = stages["probe"].counts
    assert counts["read"] == counts["undecodable"] + counts["duplicate"] + counts["not_sampled"] + len(rows)
    return rows, dict(counts)


def recompressed(seed: int, quality: int) -> bytes:
    return bytes(cv2.imencode(".jpg", texture(seed)[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1])


@pytest.fixture
def read_root(tmp_path: Path) -> Path:
    """An output whose inputs were read: a video, three stills."""
    inputs = tmp_path / "in"
    inputs.mkdir()
    (inputs / "clip.mp4").write_bytes(video(moving(30, seed=1)))
    for seed in (1, 2, 3):
        (inputs / f"still-{seed}.jpg").write_bytes(recompressed(seed, 95))
    (tmp_path / "out").mkdir()
    probed(tmp_path / "out", inputs)
    return tmp_path


def test_a_source_a_frame_and_its_likeness_are_not_read_again(read_root: Path) -> None:
    root, inputs = read_root / "out", read_root / "in"
    rows, before = probed(root, inputs)
    still = next(row for row in rows if row["source_uri"].endswith("still-1.jpg"))
    clip = [row for row in rows if row["source_uri"].endswith("clip.mp4")]
    assert len(clip) > 1
    forgotten(root, sample_ids=[still["sample_id"]], source_sha256s=[clip[0]["source_sha256"].hex()])
    assert remains(root, {"still": still["sample_id"].encode(), "clip": clip[0]["sample_id"].encode()}) == []
    (inputs / "still-1.jpg").rename(inputs / "other name.jpg")
    (inputs / "smaller.jpg").write_bytes(recompressed(1, 80))
    (inputs / "clip again.mp4").write_bytes((inputs / "clip.mp4").read_bytes())
    again, counts = probed(root, inputs)
    assert {Path(row["source_uri"]).name for row in again} == {"still-2.jpg", "still-3.jpg"}
    assert counts["not_sampled"] >= 5 - 1
    faults = json.loads((root / "quarantine.json").read_bytes())
    assert {fault["error"] for fault in faults} == {"Erased"}
    assert {fault["source"] for fault in faults} == {""}
    assert sum(fault["items"] for fault in faults) == 4
    assert counts["bad"] == 0
    assert before["bad"] == 0


def test_frames_of_a_video_are_left_out_one_by_one(read_root: Path) -> None:
    root, inputs = read_root / "out", read_root / "in"
    rows, counts = probed(root, inputs)
    clip = [row for row in rows if row["source_uri"].endswith("clip.mp4")]
    forgotten(root, sample_ids=[clip[1]["sample_id"]])
    again, less = probed(root, inputs)
    left = {row["sample_id"] for row in again}
    near = {row["sample_id"] for row in rows if (row["dhash64"] ^ clip[1]["dhash64"]).bit_count() <= 3}
    assert left == {row["sample_id"] for row in rows} - near
    assert clip[0]["sample_id"] in left
    assert less["read"] == counts["read"]


def test_another_list_is_another_stage_and_no_list_none(read_root: Path) -> None:
    root, inputs = read_root / "out", read_root / "in"
    first = survey(job(root, inputs))["probe"].folder
    assert survey(job(root, inputs))["probe"].folder == first
    rows, _ = probed(root, inputs)
    stills = [row["sample_id"] for row in rows if row["source_uri"].endswith(".jpg")]
    folders = {first}
    for number, sample in enumerate(stills[:2]):
        forgotten(root, sample_ids=[sample], at=AT.replace(hour=number))
        folders.add(survey(job(root, inputs))["probe"].folder)
    assert len(folders) == 3


@pytest.mark.parametrize("damage", ["lost", "exchanged"])
def test_without_the_key_nothing_is_read(read_root: Path, damage: str) -> None:
    root, inputs = read_root / "out", read_root / "in"
    rows, _ = probed(root, inputs)
    forgotten(root, sample_ids=[rows[-1]["sample_id"]])
    key = root / FOLDER / KEY
    if damage == "lost":
        key.unlink()
    else:
        key.write_bytes(bytes(32))
    with pytest.raises(InputError, match="key"):
        survey(job(root, inputs))


def test_a_run_reads_on_where_everything_was_erased_and_says_that_nothing_is_left(read_root: Path) -> None:
    root, inputs = read_root / "out", read_root / "in"
    rows, _ = probed(root, inputs)
    forgotten(root, source_sha256s=sorted({row["source_sha256"].hex() for row in rows}))
    with pytest.raises(InputError, match="no readable input"):
        survey(job(root, inputs))


def test_vectors_and_thumbnails_go_with_the_caches(tmp_path: Path) -> None:
    """Every stage up to the embedding, for real: no vector and no picture of the frame is left in any of them."""
    root, inputs = tmp_path / "out", tmp_path / "in"
    inputs.mkdir()
    root.mkdir()
    for seed in range(4):
        (inputs / f"still-{seed}.jpg").write_bytes(recompressed(seed, 95))
    stages = survey(job(root, inputs))
    run = job(root, inputs)
    embed = run.stage(embed_work(run.config), [(Span(uri=uri),) for uri in stages["probe"].uris()], stages["probe"])
    (row, *_) = (row for table in iter_tables(embed.uris()) for row in table.to_pylist())
    vector = np.array(row["vector"], np.float16).tobytes()
    assert remains(root, {"vector": vector, "picture": row["thumbnail"]}) != []
    forgotten(root, sample_ids=[row["sample_id"]])
    assert remains(root, {"vector": vector, "picture": row["thumbnail"], "id": row["sample_id"].encode()}) == []
