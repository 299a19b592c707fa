"""Laws of the dedupe step: the first of every family stays, whatever the cut."""

from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq

from pipeline.dedupe import _smallest_of_family, dedupe
from pipeline.duplicates import DuplicateConfig
from pipeline.embed import Embed, EmbedConfig
from pipeline.probe import Probe
from pipeline.sources import list_sources
from pipeline.stage import Span, iter_tables, read_span
from tests.pipeline.chains import SCAN, Chain, finish, rows_of


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


def test_copies_and_small_versions_go_and_mirrored_pictures_stay(data: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("images/hsd_086.jpg", "bad/dup_exact.jpg", "bad/dup_flip.jpg", "bad/dup_small_q30.jpg"):
        target = tmp_path / "in" / (name if name.startswith("bad") else "a.jpg").replace("/", "_")
        target.write_bytes((data / name).read_bytes())
    sources, _ = list_sources([str(tmp_path / "in")])
    pq.write_table(sources, tmp_path / "sources.parquet")
    probed = finish(Probe(config=SCAN), tmp_path / "probe", [(Span(uri=str(tmp_path / "sources.parquet")),)])
    embed = Embed(config=EmbedConfig(), scan=SCAN, weights_sha256=None)
    embedded = finish(embed, tmp_path / "embed", [(Span(uri=probed.uris()[0]),)])
    (table,) = dedupe(embedded, probed, DuplicateConfig())
    uris = sources.column("uri").to_pylist()
    gone = [Path(uris[row]).name for row in table.column("embed_row").to_pylist()]
    assert gone == ["bad_dup_exact.jpg", "bad_dup_small_q30.jpg"]


def test_families_join_what_shares_a_duplicate_and_take_the_smallest_name() -> None:
    digests = {uri: f"{9 - i}{uri}" for i, uri in enumerate("abcdef")}
    found = _smallest_of_family([("a", "b"), ("c", "b"), ("e", "f")], digests)
    assert found == {"a": "7c", "b": "7c", "c": "7c", "e": "4f", "f": "4f"}
    assert _smallest_of_family([], digests) == {}
