"""Laws of the dedupe step: the first of every family stays, whatever the cut."""

import itertools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.dedupe import _smallest_of_family, dedupe, families
from pipeline.duplicates import DuplicateConfig
from pipeline.embed import Embed, EmbedConfig
from pipeline.probe import Probe
from pipeline.sources import list_sources
from pipeline.stage import Done, Span, iter_tables, read_span
from pipeline.thin import ThinConfig
from tests.pipeline.chains import SCAN, Chain, finish, rows_of, step
from tests.pipeline.media import jpeg, table, texture, video


def test_what_repeats_another_source_is_left_out_and_the_first_stays(whole: Chain) -> None:
    embedded = rows_of(whole.embedded)
    uris, ids = embedded.column("source_uri").to_pylist(), embedded.column("sample_id").to_pylist()
    (table,) = iter_tables(whole.deduped.uris())
    gone = table.to_pylist()
    again = sorted(Path(uris[row["embed_row"]]).name for row in gone)
    assert again == ["t10.jpg", "t11.jpg", "t12.jpg", *["v9 again.mp4"] * uris.count(uris[-1])]
    dropped = {row["embed_row"] for row in gone}
    kept = {ids[row] for row in range(len(ids)) if row not in dropped}
    assert {row["duplicate_of"] for row in gone} <= kept


def test_the_same_frames_repeat_whatever_the_cut(whole: Chain, cut: Chain) -> None:
    def repeated(stages: Chain) -> Counter[str]:
        found: Counter[str] = Counter()
        for part, gone in zip(stages.embedded.uris(), stages.deduped.uris(), strict=True):
            uris = read_span(Span(uri=part)).column("source_uri").to_pylist()
            found.update(uris[row] for row in read_span(Span(uri=gone)).column("embed_row").to_pylist())
        return found

    assert cut.embedded.parts[0].rows == 0
    assert repeated(cut) == repeated(whole)


def embedded_from(folder: Path, cuts: Sequence[int] = (), thin: ThinConfig | None = None) -> tuple[Done, Done]:
    """The sources of ``folder/in`` probed and embedded, cut into tasks."""
    sources, _ = list_sources([str(folder / "in")])
    work = folder / "-".join(["work", *map(str, cuts)])
    work.mkdir()
    listed = str(work / "sources.parquet")
    pq.write_table(sources, listed)
    spans = [(Span(uri=listed, start=a, stop=b),) for a, b in itertools.pairwise([0, *cuts, sources.num_rows])]
    probed = finish(Probe(config=SCAN), work / "probe", spans)
    embed = Embed(config=EmbedConfig(thin=thin or ThinConfig()), scan=SCAN, weights_sha256=None)
    return finish(embed, work / "embed", [(Span(uri=uri),) for uri in probed.uris()]), probed


def repeats(embedded: Done, probed: Done) -> list[tuple[str, int, str, int]]:
    """(name, frame) of each duplicate, and of the first frame with the id of its original."""
    columns = [("sample_id", embedded), ("source_uri", embedded)]
    ids, uris = ([v for t in iter_tables(d.uris()) for v in t.column(name).to_pylist()] for name, d in columns)
    frames = [
        number
        for part, described in zip(iter_tables(embedded.uris()), iter_tables(probed.uris()), strict=True)
        for number in described.column("frame_index").take(part.column("probe_row")).to_pylist()
    ]
    names = [(Path(uri).name, frame) for uri, frame in zip(uris, frames, strict=True)]
    found = []
    start = 0
    for part, gone in zip(iter_tables(embedded.uris()), dedupe(embedded, probed, DuplicateConfig()), strict=True):
        for row, original in zip(*(gone.column(c).to_pylist() for c in gone.column_names), strict=True):
            found.append((*names[start + row], *names[ids.index(original)]))
        start += part.num_rows
    return found


def test_copies_and_small_versions_go_and_mirrored_pictures_stay(data: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("images/hsd_086.jpg", "bad/dup_exact.jpg", "bad/dup_flip.jpg", "bad/dup_small_q30.jpg"):
        target = tmp_path / "in" / (name if name.startswith("bad") else "a.jpg").replace("/", "_")
        target.write_bytes((data / name).read_bytes())
    gone = repeats(*embedded_from(tmp_path))
    assert gone == [("bad_dup_exact.jpg", 0, "a.jpg", 0), ("bad_dup_small_q30.jpg", 0, "a.jpg", 0)]


@pytest.fixture
def tables_and_videos(tmp_path: Path) -> Path:
    """Rows of tables and a still that are nearly one picture, and a video of one moment."""
    (tmp_path / "in").mkdir()
    rows = [jpeg(1, quality=95), jpeg(2), jpeg(1, quality=80), jpeg(3), jpeg(1, quality=95)]
    (tmp_path / "in" / "a.parquet").write_bytes(table({"image": rows}))
    (tmp_path / "in" / "b.parquet").write_bytes(table({"image": [jpeg(4), None, jpeg(2, quality=60)]}))
    (tmp_path / "in" / "c.jpg").write_bytes(jpeg(3, quality=60))
    still = [texture(9) + (number % 2) * (texture(10) // 40) for number in range(20)]
    (tmp_path / "in" / "d.mp4").write_bytes(video(still))
    return tmp_path


def test_rows_of_one_table_are_compared_and_frames_of_one_video_are_not(tables_and_videos: Path) -> None:
    every = ThinConfig(gap_seconds=0, still_seconds=0)
    embedded, probed = embedded_from(tables_and_videos, thin=every)
    assert [Path(uri).name for uri in rows_of(embedded).column("source_uri").to_pylist()].count("d.mp4") > 1
    assert repeats(embedded, probed) == [
        ("a.parquet", 2, "a.parquet", 0),
        ("a.parquet", 4, "a.parquet", 0),
        ("b.parquet", 2, "a.parquet", 1),
        ("c.jpg", 0, "a.parquet", 3),
    ]


@pytest.mark.parametrize("cuts", [(1,), (2, 3), (0, 1, 1, 2, 3)])
def test_no_cut_changes_which_frames_go_or_for_whom(tables_and_videos: Path, cuts: tuple[int, ...]) -> None:
    assert repeats(*embedded_from(tables_and_videos, cuts)) == repeats(*embedded_from(tables_and_videos))


def test_nothing_embedded_has_no_duplicates(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "broken.jpg").write_bytes(jpeg(1)[:200])
    embedded, probed = embedded_from(tmp_path)
    (gone,) = dedupe(embedded, probed, DuplicateConfig())
    assert gone.num_rows == 0
    assert gone.schema == pa.schema([("embed_row", pa.int32()), ("duplicate_of", pa.string())])
    deduped = step("dedupe", tmp_path / "dedupe", [gone])
    assert families(embedded, probed, deduped) == {}


def test_sources_that_share_a_frame_are_a_family_under_its_smallest_digest(whole: Chain, cut: Chain) -> None:
    for stages in (whole, cut):
        found = families(stages.embedded, stages.probed, stages.deduped)
        rows = rows_of(stages.probed)
        digests = dict(
            zip(rows.column("source_uri").to_pylist(), rows.column("source_sha256").to_pylist(), strict=True)
        )
        named = {Path(uri).name: family for uri, family in found.items()}
        expected = [{"v0.mp4", "v9 again.mp4"}, *({f"s{n}.jpg", f"t{n}.jpg"} for n in (10, 11, 12))]
        assert set(named) == set().union(*expected)
        for family in expected:
            smallest = min(digest.hex() for uri, digest in digests.items() if Path(uri).name in family)
            assert {named[name] for name in family} == {smallest}


def test_families_reach_over_a_chain_of_sources(tmp_path: Path) -> None:
    """a and b share a picture, b and c another one; a and c share none."""
    (tmp_path / "in").mkdir()
    contents = {"a": [jpeg(1), jpeg(2)], "b": [jpeg(2), jpeg(3)], "c": [jpeg(3), jpeg(4)], "d": [jpeg(5)]}
    for name, rows in contents.items():
        (tmp_path / "in" / f"{name}.parquet").write_bytes(table({"image": rows}))
    embedded, probed = embedded_from(tmp_path, (1, 3))
    deduped = step("dedupe", tmp_path / "dedupe", dedupe(embedded, probed, DuplicateConfig()))
    found = families(embedded, probed, deduped)
    assert {Path(uri).stem for uri in found} == {"a", "b", "c"}
    assert len(set(found.values())) == 1


def test_families_join_what_shares_a_duplicate_and_take_the_smallest_name() -> None:
    digests = {uri: f"{9 - i}{uri}" for i, uri in enumerate("abcdef")}
    found = _smallest_of_family([("a", "b"), ("c", "b"), ("e", "f")], digests)
    assert found == {"a": "7c", "b": "7c", "c": "7c", "e": "4f", "f": "4f"}
    assert _smallest_of_family([], digests) == {}
