"""Laws of the embedding: unit vectors, thumbnails that decode, and a frame that is no longer the same is told."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from pipeline.embed import (
    DESCRIPTOR_DIMENSION,
    Descriptor,
    Embed,
    EmbedConfig,
    TimmEmbedder,
    decode_jpeg,
    descriptor,
    embedded_schema,
    encode_jpeg,
    frames_of,
    load_embedder,
    shrink,
    vectors_of,
    weights_digest,
)
from pipeline.errors import InputError, StageError
from pipeline.frames import ScanConfig, content_sha256
from pipeline.stage import Output, Span, Task
from pipeline.thin import ThinConfig, thin
from tests.pipeline.media import jpeg, moving, table, texture, video
from tests.pipeline.test_probe import draw_sources, probe, sources_file

SCAN = ScanConfig()
OFF = ThinConfig(gap_seconds=0, still_seconds=0)
EVERY = EmbedConfig(thin=OFF)
TINY = "mobilenetv3_small_050"


class Probed:
    """Sources of their own, and what the probe says of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.uri, self.uris = sources_file(folder, folder / "in")
        self.table = probe(self.uri, (0, None)).table
        self.write(self.table)

    def write(self, table: pa.Table) -> None:
        pq.write_table(table, self.folder / "probe.parquet")

    def embed(self, config: EmbedConfig | None = None, digest: str | None = None) -> Output:
        work = Embed(config=config or EVERY, scan=SCAN, weights_sha256=digest)
        spans = (Span(uri=str(self.folder / "probe.parquet")),)
        return work.open()(Task(index=0, count=1, folder="", spans=spans))


@pytest.fixture
def probed(tmp_path: Path) -> Probed:
    draw_sources(tmp_path / "in")
    return Probed(tmp_path)


def errors(output: Output) -> list[tuple[str, str, int]]:
    return [(Path(fault["source"]).name, fault["error"], fault["items"]) for fault in output.faults]


# The stage ------------------------------------------------------------------------------------------------------------


def test_every_frame_gets_a_unit_vector_and_a_thumbnail(probed: Probed) -> None:
    output = probed.embed()
    table = output.table
    assert table.schema.equals(embedded_schema(DESCRIPTOR_DIMENSION))
    assert (output.counts, output.faults) == ({"undecodable": 0, "thinned": 0}, [])
    assert table.column("probe_row").to_pylist() == list(range(probed.table.num_rows))
    assert table.column("stands_for").to_pylist() == [1] * probed.table.num_rows
    for name in ("sample_id", "source_uri"):
        assert table.column(name).to_pylist() == probed.table.column(name).to_pylist()
    vectors = vectors_of(table)
    assert vectors.shape == (13, DESCRIPTOR_DIMENSION)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=2e-3)
    for data in table.column("thumbnail").to_pylist():
        assert decode_jpeg(data).shape == (64, 96, 3)


def test_a_thumbnail_shows_its_own_frame(probed: Probed) -> None:
    table = probed.embed(EmbedConfig(thumbnail_side=32, thin=OFF)).table
    frames = {content_sha256(p): p for _, p in frames_of(probed.table, SCAN, [], "x")}
    for row, data in enumerate(table.column("thumbnail").to_pylist()):
        picture = frames[probed.table.column("content_sha256")[row].as_py()]
        assert decode_jpeg(data).shape == (21, 32, 3)
        assert np.abs(decode_jpeg(data).astype(int) - shrink(picture, 32)).mean() < 8


def test_the_batch_changes_no_vector_of_the_descriptor(probed: Probed) -> None:
    for thinning in (OFF, ThinConfig()):
        one, many = (probed.embed(EmbedConfig(batch=batch, thin=thinning)).table for batch in (1, 16))
        assert one.equals(many)


def test_a_part_without_rows_stays_a_part_without_rows(probed: Probed) -> None:
    probed.write(probed.table.slice(0, 0))
    output = probed.embed()
    assert output.table.num_rows == 0
    assert output.table.schema.equals(embedded_schema(DESCRIPTOR_DIMENSION))
    assert vectors_of(output.table).shape == (0, DESCRIPTOR_DIMENSION)


def test_a_source_that_changed_since_the_probe_is_told(probed: Probed) -> None:
    before = probed.table.num_rows
    (probed.folder / "in" / "still.jpg").write_bytes(jpeg(99))
    (probed.folder / "in" / "clip a.mp4").write_bytes(video(moving(30, seed=77)))
    output = probed.embed()
    assert errors(output) == [("clip a.mp4", "FrameChanged", 1)] * 5 + [("still.jpg", "FrameChanged", 1)]
    assert output.counts["undecodable"] == 6
    assert output.table.num_rows == before - 6
    assert "frame 0 is gone or has changed since it was probed" in output.faults[-1]["message"]
    rows = output.table.column("probe_row").to_pylist()
    ids = probed.table.column("sample_id").take(pa.array(rows))
    assert output.table.column("sample_id").to_pylist() == ids.to_pylist()


def test_a_source_that_is_gone_or_cut_loses_its_frames_only(probed: Probed) -> None:
    before = probed.table.num_rows
    (probed.folder / "in" / "no_suffix").unlink()
    (probed.folder / "in" / "clip-b.mp4").write_bytes(video(moving(7, seed=2)))
    output = probed.embed()
    found = errors(output)
    assert ("no_suffix", "Undecodable", 0) in found
    assert ("no_suffix", "FrameChanged", 1) in found
    assert ("clip-b.mp4", "Undecodable", 0) in found
    assert output.table.num_rows + output.counts["undecodable"] == before
    assert {Path(fault["source"]).name for fault in output.faults} == {"no_suffix", "clip-b.mp4"}


def test_a_vector_that_is_zero_or_not_finite_is_set_aside(probed: Probed, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Descriptor.__call__

    def spoil(self: Descriptor, pictures: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
        vectors = whole(self, pictures)
        vectors[0] = 0
        vectors[1, 3] = np.nan
        vectors[2, 3] = 1e30  # beyond float16
        return vectors

    monkeypatch.setattr(Descriptor, "__call__", spoil)
    with np.errstate(over="ignore"):
        output = probed.embed()
    assert [fault["error"] for fault in output.faults] == ["DeadVector"] * 3
    assert output.counts["undecodable"] == 3
    assert output.table.column("probe_row").to_pylist() == list(range(3, probed.table.num_rows))


def spoiled(monkeypatch: pytest.MonkeyPatch, dead: set[bytes]) -> None:
    """Makes the embedder give a zero vector for some pictures."""
    whole = Descriptor.__call__

    def spoil(self: Descriptor, pictures: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
        alive = np.array([content_sha256(picture) not in dead for picture in pictures])
        return np.asarray(whole(self, pictures) * alive[:, None], np.float32)

    monkeypatch.setattr(Descriptor, "__call__", spoil)


def test_blank_frames_and_dead_vectors_are_counted_once_each_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    black = texture(0) * 0
    (folder / "a.mp4").write_bytes(video([*moving(12, seed=1), *[black] * 12, *moving(12, seed=2)]))
    (folder / "b.jpg").write_bytes(jpeg(3))
    uri, uris = sources_file(tmp_path, folder)
    output = probe(uri, (0, None))
    blank = [fault["items"] for fault in output.faults if fault["error"] == "BlankFrame"]
    assert len(blank) == 1
    assert blank[0] >= 2
    rows = Probed(tmp_path)
    victim = rows.table.column("content_sha256")[0].as_py()
    spoiled(monkeypatch, {victim})
    for config in (EVERY, EmbedConfig()):
        embedded = rows.embed(config)
        assert errors(embedded) == [("a.mp4", "DeadVector", 1)]
        assert embedded.faults[0]["message"] == "frame 0: the embedding is zero or not finite"
        assert embedded.counts["undecodable"] == 1
        lost = embedded.counts["undecodable"] + embedded.counts["thinned"]
        assert embedded.table.num_rows + lost == rows.table.num_rows
        assert victim not in rows.table.column("content_sha256").take(embedded.table.column("probe_row")).to_pylist()
        assert embedded.table.column("stands_for").to_numpy().sum() == rows.table.num_rows - 1
    assert uris == sorted(uris)


def test_a_source_of_dead_vectors_alone_leaves_an_empty_part(probed: Probed, monkeypatch: pytest.MonkeyPatch) -> None:
    spoiled(monkeypatch, set(probed.table.column("content_sha256").to_pylist()))
    output = probed.embed(EmbedConfig())
    assert output.table.num_rows == 0
    assert output.table.schema.equals(embedded_schema(DESCRIPTOR_DIMENSION))
    assert output.counts == {"undecodable": probed.table.num_rows, "thinned": 0}


# Thinning -------------------------------------------------------------------------------------------------------------


def test_each_source_is_thinned_by_itself_and_every_frame_is_counted(probed: Probed) -> None:
    whole, output = probed.embed(EVERY).table, probed.embed(EmbedConfig())
    table = output.table
    assert output.counts["thinned"] > 0
    assert output.counts["thinned"] + table.num_rows == probed.table.num_rows
    assert table.column("stands_for").to_numpy().sum() == probed.table.num_rows
    uris = np.array(whole.column("source_uri").to_pylist())
    expected: list[int] = []
    for uri in dict.fromkeys(uris.tolist()):
        rows = np.flatnonzero(uris == uri)
        times = [probed.table.column("frame_pts_us")[int(row)].as_py() for row in rows]
        scenes = probed.table.column("scene").to_numpy()[rows]
        pts = None if times[0] is None else np.array(times)
        expected += rows[thin(pts, scenes, vectors_of(whole)[rows], ThinConfig())[0]].tolist()
    assert table.drop_columns(["stands_for"]).equals(whole.take(expected).drop_columns(["stands_for"]))


def test_stills_and_rows_of_a_table_are_never_thinned(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "rows.parquet").write_bytes(table({"image": [jpeg(1, quality=q) for q in (70, 80, 90)]}))
    for number in range(3):
        (folder / f"{number}.jpg").write_bytes(jpeg(2, quality=70 + number))
    output = Probed(tmp_path).embed(EmbedConfig())
    assert output.table.column("stands_for").to_pylist() == [1] * 6


def test_one_source_after_another_or_together_gives_the_same_rows(tmp_path: Path) -> None:
    draw_sources(tmp_path / "in")
    uri, uris = sources_file(tmp_path, tmp_path / "in")
    rows = Probed(tmp_path)
    together = rows.embed(EmbedConfig()).table
    alone = []
    for number in range(len(uris)):
        rows.write(probe(uri, (number, number + 1)).table)
        alone.append(rows.embed(EmbedConfig()).table)
    assert pa.concat_tables(alone).drop_columns(["probe_row"]).equals(together.drop_columns(["probe_row"]))


def test_a_real_talking_head_keeps_some_frames_and_not_all(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("talk_d10.mp4", "asl_milk.mp4"):
        (folder / name).write_bytes((data / "clips" / name).read_bytes())
    rows = Probed(tmp_path)
    table = rows.embed(EmbedConfig()).table
    frames, kept = (
        [uris.count(uri) for uri in sorted(set(uris))]
        for uris in (t.column("source_uri").to_pylist() for t in (rows.table, table))
    )
    for many, few in zip(frames, kept, strict=True):
        assert 2 <= few <= many / 3


# The descriptor -------------------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(st.integers(0, 1000), st.integers(32, 300), st.integers(32, 300))
def test_a_descriptor_is_a_unit_vector_for_any_size(seed: int, height: int, width: int) -> None:
    vector = descriptor(texture(seed, height, width))
    assert vector.shape == (DESCRIPTOR_DIMENSION,)
    assert vector.dtype == np.float32
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)


def test_the_same_picture_smaller_and_compressed_is_nearer_than_another() -> None:
    for seed in range(20):
        picture = texture(seed, 240, 320)
        again = decode_jpeg(encode_jpeg(shrink(picture, 160), 30))
        near = float(descriptor(picture) @ descriptor(again))
        far = float(descriptor(picture) @ descriptor(texture(seed + 100, 240, 320)))
        assert near > 0.97 > far


def test_a_uniform_picture_has_a_descriptor() -> None:
    assert np.isfinite(descriptor(np.zeros((64, 64, 3), np.uint8))).all()


# Backbones ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_file(timm.create_model(TINY, pretrained=False).state_dict(), path)
    return path


def tiny(checkpoint: Path) -> EmbedConfig:
    return EmbedConfig(model=TINY, checkpoint=str(checkpoint), side=32, batch=4, thin=OFF)


def test_a_backbone_embeds_with_the_weights_of_its_file(probed: Probed, weights: Path) -> None:
    config = tiny(weights)
    output = probed.embed(config, weights_digest(config))
    vectors = vectors_of(output.table)
    assert vectors.shape == (13, 1024)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=2e-3)
    assert probed.embed(config, weights_digest(config)).table.equals(output.table)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_a_backbone_sees_a_picture_alike_in_any_batch(weights: Path, batch: int) -> None:
    embedder = load_embedder(tiny(weights), None)
    pictures = [texture(seed, 40 + seed, 50) for seed in range(5)]
    whole = embedder(pictures)
    parts = np.concatenate([embedder(pictures[i : i + batch]) for i in range(0, 5, batch)])
    np.testing.assert_allclose(parts, whole, atol=1e-5)
    assert isinstance(embedder, TimmEmbedder)
    assert embedder.dimension == whole.shape[1]


def test_weights_that_changed_since_the_plan_are_refused(weights: Path) -> None:
    with pytest.raises(InputError, match=r"tiny.safetensors has changed since the run was planned"):
        load_embedder(tiny(weights), "0" * 64)


def changed(state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    return {("x" if key == name else key): value for key, value in state.items()}


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    save_file(changed(timm.create_model(TINY).state_dict(), "conv_stem.weight"), other)
    with pytest.raises(InputError, match=r"is no 'mobilenetv3.*missing \['conv_stem.weight'\], surplus \['x'\]"):
        load_embedder(tiny(other), None)


@pytest.mark.parametrize(("name", "content"), [("w.safetensors", b"no weights"), ("w.pth", b""), ("w.txt", b"")])
def test_a_file_that_holds_no_weights_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"embed.checkpoint .*{name}"):
        load_embedder(tiny(tmp_path / name), None)


def test_the_digest_of_weights_is_of_their_bytes(tmp_path: Path, weights: Path) -> None:
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(weights.read_bytes())
    assert weights_digest(tiny(copy)) == weights_digest(tiny(weights))
    assert weights_digest(EmbedConfig()) is None
    with pytest.raises(InputError, match=r"embed.checkpoint .*absent does not exist"):
        weights_digest(tiny(tmp_path / "absent"))


# Pictures -------------------------------------------------------------------------------------------------------------


@given(st.integers(1, 400), st.integers(1, 400), st.integers(1, 200))
def test_shrinking_keeps_the_shape_and_never_enlarges(height: int, width: int, side: int) -> None:
    found = shrink(np.zeros((height, width, 3), np.uint8), side)
    assert max(found.shape[:2]) == min(side, max(height, width))
    assert min(found.shape[:2]) >= 1
    assert found.shape[0] == pytest.approx(max(1, height * max(found.shape[:2]) / max(height, width)), abs=1)


def test_a_stored_picture_keeps_its_colours() -> None:
    picture = np.zeros((32, 32, 3), np.uint8)
    picture[:, :16] = (250, 10, 10)
    picture[:, 16:] = (10, 10, 250)
    assert np.abs(decode_jpeg(encode_jpeg(picture, 95)).astype(int) - picture)[:, [4, 28]].mean() < 8


def test_a_damaged_picture_of_ours_says_what_to_do() -> None:
    with pytest.raises(StageError, match="the stage folder is damaged, remove it and run again"):
        decode_jpeg(b"\xff\xd8 nothing")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"side": 31}, "embed.side must be >= 32, got 31"),
        ({"thumbnail_side": 0}, "embed.thumbnail_side must be >= 32"),
        ({"batch": 0}, "embed.batch must be >= 1"),
        ({"model": TINY}, "needs embed.checkpoint"),
        ({"model": "nosuch", "checkpoint": "x"}, "embed.model must be 'descriptor' or a timm model, got 'nosuch'"),
    ],
)
def test_impossible_settings_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EmbedConfig(**values)  # type: ignore[arg-type]
