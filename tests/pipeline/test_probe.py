"""Laws of the probe: every item of every source is counted once, and no input makes it raise."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.attributes import COMPUTED
from pipeline.frames import ScanConfig
from pipeline.motion import decode_grid
from pipeline.probe import PROBED, Probe, ProbeConfig, plan_shards, probe_spans, sample_id
from pipeline.sources import list_sources
from pipeline.stage import Output, Span, Task
from tests.pipeline.media import jpeg, moving, table, texture, video

ITEMS = ("read", "undecodable", "duplicate", "not_sampled")


def draw_sources(folder: Path) -> None:
    """Two videos, two stills, a table, and files that are broken, blank or no media."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "clip a.mp4": video(moving(30, seed=1)),
        "clip-b.mp4": video(moving(20, seed=2)),
        "still.jpg": jpeg(3),
        "no_suffix": jpeg(4),
        "table.parquet": table({"image": [jpeg(5), None, jpeg(6)]}),
        "broken.jpg": jpeg(7)[:300],
        "page.jpg": b"<html>not found</html>",
        "empty.mp4": b"",
        "black.mp4": video([texture(1) * 0] * 3),
        "notes.txt": b"words",
        "list.csv": b"",
    }
    for name, data in content.items():
        (folder / name).write_bytes(data)
    (folder / "gone.jpg").symlink_to("nowhere")


def sources_file(folder: Path, *inputs: Path) -> tuple[str, list[str]]:
    """A table of sources and its uris."""
    sources, _ = list_sources([str(i) for i in inputs])
    pq.write_table(sources, folder / "sources.parquet")
    return str(folder / "sources.parquet"), sources.column("uri").to_pylist()


def probe(uri: str, *spans: tuple[int, int | None], config: ScanConfig | None = None) -> Output:
    """Probes spans of a table of sources."""
    task = Task(index=0, count=1, folder="", spans=tuple(Span(uri=uri, start=a, stop=b) for a, b in spans))
    output = Probe(config=config or ScanConfig()).open()(task)
    counts = output.counts
    assert output.table.schema.equals(PROBED)
    assert counts["read"] == counts["undecodable"] + counts["duplicate"] + counts["not_sampled"] + output.table.num_rows
    blank = sum(fault["items"] for fault in output.faults if fault["error"] == "BlankFrame")
    assert counts["undecodable"] + blank == sum(fault["items"] for fault in output.faults)
    assert all(set(f) == {"source", "stage", "error", "message", "items"} for f in output.faults)
    return output


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[str]]:
    folder = tmp_path_factory.mktemp("probe")
    draw_sources(folder / "in")
    return sources_file(folder, folder / "in")


# Drawn sources --------------------------------------------------------------------------------------------------------


def test_every_source_has_its_fate(drawn: tuple[str, list[str]]) -> None:
    output = probe(drawn[0], (0, None))
    rows: dict[str, int] = {}
    for uri in output.table.column("source_uri").to_pylist():
        rows[Path(uri).name] = rows.get(Path(uri).name, 0) + 1
    assert rows == {"clip a.mp4": 5, "clip-b.mp4": 4, "still.jpg": 1, "no_suffix": 1, "table.parquet": 2}
    assert {Path(fault["source"]).name: fault["error"] for fault in output.faults} == {
        "broken.jpg": "Truncated",
        "page.jpg": "UnsupportedFormat",
        "empty.mp4": "EmptyFile",
        "black.mp4": "BlankFrame",
        "gone.jpg": "Unreadable",
        "table.parquet": "NoBytes",
    }
    assert (output.counts["sources"], output.counts["not_media"], output.counts["bad"]) == (10, 2, 5)


def test_a_row_describes_its_frame(drawn: tuple[str, list[str]]) -> None:
    for row in probe(drawn[0], (0, None)).table.to_pylist():
        assert row["source_sha256"] == hashlib.sha256(Path(row["source_uri"]).read_bytes()).digest()
        assert row["sample_id"] == sample_id(row["content_sha256"], row["frame_pts_us"])
        assert (row["width"], row["height"], row["exif_orientation"]) == (96, 64, 1)
        assert (row["frame_pts_us"] is None) == (row["media_kind"] != "video")
        assert all(row[name] in (*classes, None) for name, classes in COMPUTED.items())
        assert row["resolution"] == "le_360p"


def test_frames_of_a_video_but_its_first_have_a_motion_grid(drawn: tuple[str, list[str]]) -> None:
    for row in probe(drawn[0], (0, None)).table.to_pylist():
        moves = row["media_kind"] == "video" and row["frame_index"] > 0
        assert (row["motion_grid"] is not None) == moves
        assert (row["camera_motion"] is not None) == (row["frame_motion"] is not None) == moves
        if moves:
            assert decode_grid(row["motion_grid"]).shape == (16, 16, 2)


def test_the_cut_into_tasks_changes_nothing(drawn: tuple[str, list[str]]) -> None:
    uri, uris = drawn
    whole = probe(uri, (0, None))
    singles = [probe(uri, (i, i + 1)) for i in range(len(uris))]
    assert pa.concat_tables([single.table for single in singles]).equals(whole.table)
    assert [fault for single in singles for fault in single.faults] == list(whole.faults)
    assert {key: sum(single.counts[key] for single in singles) for key in whole.counts} == whole.counts
    several = probe(uri, *((i, i + 1) for i in range(len(uris))))
    assert several.table.equals(whole.table)


def test_a_pipe_among_the_inputs_is_a_fault_and_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    os.mkfifo(tmp_path / "in" / "pipe.mp4")
    output = probe(sources_file(tmp_path, tmp_path / "in")[0], (0, None))
    assert [fault["error"] for fault in output.faults] == ["Unreadable"]


def test_the_same_content_under_two_names_has_one_id(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    data = video(moving(10))
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / "in" / name).write_bytes(data)
    rows = probe(sources_file(tmp_path, tmp_path / "in")[0], (0, None)).table.to_pylist()
    first, second = ([r["sample_id"] for r in rows if r["source_uri"].endswith(n)] for n in ("a.mp4", "b.mp4"))
    assert first == second
    assert len(set(first)) == len(first) == 2


# The bad files --------------------------------------------------------------------------------------------------------

FATES: dict[str, str] = {
    "accept": "kept",
    "accept first frame or reject with a reason": "kept",
    "accept with correct colours or reject; never inverted colours": "kept",
    "accept; the name must survive into manifests": "kept",
    "accept; image and mask must use the same orientation": "kept",
    "accept, scaled to 8 bit (not clipped or wrapped)": "kept",
    "accept, scaled to 8 bit": "kept",
    "accept as 3 channels": "kept",
    "accept or skip with a reason": "kept",
    "accept as RGB": "kept",
    "accept (detect by content) or reject with a clear reason": "kept",
    "accept as RGB; do not leak alpha as a label": "kept",
    "exact-duplicate removal": "kept",  # by the probe: duplicates are found later
    "near-duplicate removal": "kept",
    "policy decides; state it": "kept",
    "threshold stated": "kept",
    "-": "kept",
    "reject the pair": "kept",  # as a picture; it is a pair in labelled sets only
    "accept as binary or reject with a reason; not read as empty": "blank",  # as a picture; it is a mask elsewhere
    "drop as blank, with a reason": "blank",
    "accept the readable frames, record the shortfall": "part",
    "no crash; flag if detected": "part",
    "reject": "broken",
    "reject (too small)": "broken",
    "reject (aspect or size rule)": "broken",
    "reject from the header (pixel limit)": "broken",
    "reject from the header before decoding": "broken",
    "reject or flag: many decoders return a half-grey image without an error": "broken",
    "skip": "hidden",
}


def fate(output: Output) -> str:
    errors = [fault["error"] for fault in output.faults]
    if not errors:
        return "kept" if output.table.num_rows else "lost"
    if errors == ["BlankFrame"]:
        return "blank"
    return "part" if output.table.num_rows else "broken"


def test_each_bad_file_ends_as_its_entry_says(data: Path, tmp_path: Path) -> None:
    entries: list[dict[str, Any]] = json.loads((data / "MANIFEST.json").read_text())["files"]
    expected = {
        str((data / entry["file"]).resolve()): FATES[entry["expected_handling"]]
        for entry in entries
        if entry["kind"] == "bad"
    }
    uri, uris = sources_file(tmp_path, (data / "bad").resolve())
    assert list_sources([str(data / "bad")])[1] == 1
    found = dict.fromkeys(expected, "hidden") | {name: fate(probe(uri, (i, i + 1))) for i, name in enumerate(uris)}
    assert found == expected


def test_all_bad_files_at_once_are_counted_in_full(data: Path, tmp_path: Path) -> None:
    uri, uris = sources_file(tmp_path, (data / "bad").resolve())
    output = probe(uri, (0, None))
    assert output.counts["sources"] == len(uris) == 38
    told = {fault["source"] for fault in output.faults}
    kept = set(output.table.column("source_uri").to_pylist())
    assert told | kept == set(uris)


# Shards ---------------------------------------------------------------------------------------------------------------

SIZES = st.lists(st.integers(0, 400 << 20), max_size=200)


@given(SIZES, st.integers(1, 1000))
def test_runs_cover_all_sources_in_order(sizes: list[int], shards: int) -> None:
    runs = plan_shards(sizes, shards)
    assert [i for start, stop in runs for i in range(start, stop)] == list(range(len(sizes)))
    assert all(stop > start for start, stop in runs)


@given(SIZES, st.integers(1, 1000))
def test_runs_are_as_large_as_they_may(sizes: list[int], shards: int) -> None:
    runs = plan_shards(sizes, shards)
    for start, stop in runs[:-1]:
        assert sum(sizes[start:stop]) + 4096 * (stop - start) >= 1 << 20
    for start, stop in runs:
        assert sum(sizes[start : stop - 1]) < 256 << 20
    assert len(runs) <= sum(sizes) // (1 << 20) + len(sizes) * 4096 // (1 << 20) + 1


def test_many_small_sources_are_cut_by_number() -> None:
    runs = plan_shards([0] * 10_000, 1)
    assert max(stop - start for start, stop in runs) <= 4096
    assert len(runs) >= 3


def test_spans_are_runs_of_the_table() -> None:
    sizes: Sequence[int] = [1 << 20] * 6
    spans = probe_spans("t", sizes, ProbeConfig(shards=3))
    assert [(s.uri, s.start, s.stop) for (s,) in spans] == [("t", a, b) for a, b in plan_shards(sizes, 3)]
    assert probe_spans("t", [], ProbeConfig()) == []


def test_no_shard_is_no_plan() -> None:
    with pytest.raises(ValueError, match=r"probe\.shards must be >= 1, got 0"):
        ProbeConfig(shards=0)


def test_an_id_knows_content_and_time() -> None:
    ids = {sample_id(content, pts) for content in (b"a" * 32, b"b" * 32) for pts in (None, 0, 1)}
    assert len(ids) == 6
    assert all(len(i) == 32 and int(i, 16) >= 0 for i in ids)
