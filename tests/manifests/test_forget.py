"""Laws of resolving a selection over releases, and of the successors without what it names."""

import hashlib
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from manifests.erasures import ErasureError, Replaced
from manifests.forget import (
    ROWS,
    Found,
    Held,
    Selection,
    find,
    held_of,
    read_rows,
    releases_of,
    remove_release,
    rewrite,
)
from manifests.release import fingerprint, read_release, read_release_bytes
from manifests.shard import read_parquet
from manifests.traces import Traces
from manifests.verify import verify_release
from tests.manifests.remains import digests, remains
from tests.review import releases
from tests.review.releases import Sample, figures

AT = datetime(2026, 3, 1, tzinfo=UTC)
KEY = bytes(range(32))


def traces_of(held: Held) -> Traces:
    return Traces(samples=frozenset(held.samples))


def of(folder: Path) -> str:
    return fingerprint(read_release_bytes(folder))


def samples_of(found: Found) -> set[str]:
    return set(found.rows.column("sample_id").to_pylist())


def ids(samples: list[Sample], *numbers: int) -> set[str]:
    return {samples[number].id for number in numbers}


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Sample], list[Path]]:
    """Three releases, each made from the one before, with some samples in common."""
    root, samples = tmp_path_factory.mktemp("family"), figures(24)
    first = releases.write(root, samples[:18])
    second = releases.write(root, samples, parents=(of(first),))
    third = releases.write(root, samples[9:], parents=(of(second),))
    return root, samples, [first, second, third]


Family = tuple[Path, list[Sample], list[Path]]


# Selections -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "nothing to forget"),
        ({"subjects": ("",)}, "non-empty"),
        ({"sample_ids": ("ab",)}, "a sample id has 32"),
        ({"source_sha256s": ("AB" * 32,)}, "sha256 of a file has 64 lower-case"),
    ],
)
def test_a_selection_that_names_nothing_or_nonsense_is_refused(given: dict[str, tuple[str]], message: str) -> None:
    with pytest.raises(ErasureError, match=message):
        Selection(**given)


def test_a_person_is_found_in_every_release_whatever_was_decided(family: Family) -> None:
    root, samples, folders = family
    found = find(root, Selection(subjects=("person-video-1",)))  # 3 dropped with pixels, 4 held, 5 kept
    assert {samples[number].decision for number in (3, 4, 5)} == {"drop", "hold", "keep"}
    assert samples_of(found) == ids(samples, 3, 4, 5)
    assert [held.folder for held in found.held] == folders[:2]
    assert all(set(held.samples) == samples_of(found) for held in found.held)
    assert found.count == 3


def test_consent_source_and_sample_name_their_rows(tmp_path: Path) -> None:
    samples = figures(12)
    samples[7] = replace(samples[7], row={"consent_ref": "form-9"})
    releases.write(tmp_path, samples)
    source = hashlib.sha256(b"video-0").hexdigest()
    assert samples_of(find(tmp_path, Selection(consent_refs=("form-9",)))) == ids(samples, 7)
    assert samples_of(find(tmp_path, Selection(source_sha256s=(source,)))) == ids(samples, 0, 1, 2)
    assert samples_of(find(tmp_path, Selection(sample_ids=(samples[5].id,)))) == ids(samples, 5)
    both = Selection(consent_refs=("form-9",), source_sha256s=(source,), sample_ids=(samples[5].id,))
    assert samples_of(find(tmp_path, both)) == ids(samples, 0, 1, 2, 5, 7)


def test_a_row_without_people_or_consent_matches_nobody(tmp_path: Path) -> None:
    samples = [replace(one, row={"subject_ids": [], "consent_ref": None}) for one in figures(6)]
    samples[2] = replace(samples[2], row={"subject_ids": ["a", "b"]})
    releases.write(tmp_path, samples)
    assert samples_of(find(tmp_path, Selection(subjects=("b",)))) == ids(samples, 2)


def test_a_sample_goes_from_releases_that_do_not_know_the_person_yet(tmp_path: Path) -> None:
    samples = figures(12)
    early = releases.write(tmp_path, [replace(one, row={"subject_ids": []}) for one in samples])
    late = releases.write(tmp_path, samples, parents=(of(early),))
    found = find(tmp_path, Selection(subjects=("person-video-1",)))
    assert [held.folder for held in found.held] == [early, late]
    assert {held.samples for held in found.held} == {tuple(sorted(ids(samples, 3, 4, 5)))}


def test_the_same_pixels_under_another_id_go_too(tmp_path: Path) -> None:
    samples = figures(12)
    twin = replace(samples[11], number=99, row={"content_sha256": hashlib.sha256(samples[4].image.tobytes()).digest()})
    releases.write(tmp_path, [*samples, twin])
    found = find(tmp_path, Selection(sample_ids=(samples[4].id,)))
    assert samples_of(found) == {samples[4].id, twin.id}


def test_what_is_nowhere_is_refused_by_its_name(family: Family) -> None:
    root, samples, _ = family
    selection = Selection(subjects=("person-video-1", "nobody"), sample_ids=(samples[0].id, "0" * 32))
    with pytest.raises(ErasureError, match=r"subject 'nobody', sample '0{32}': .*3 releases.*check the spelling"):
        find(root, selection)


def test_a_source_may_not_come_back_only_if_nothing_of_it_stays(tmp_path: Path) -> None:
    samples = figures(12)
    samples[3] = replace(samples[3], row={"subject_ids": ["somebody-else"]})
    releases.write(tmp_path, samples)
    digest = hashlib.sha256(b"video-1").digest()
    assert find(tmp_path, Selection(subjects=("person-video-2",))).whole == {hashlib.sha256(b"video-2").digest()}
    assert find(tmp_path, Selection(subjects=("person-video-1",))).whole == frozenset()
    assert find(tmp_path, Selection(source_sha256s=(digest.hex(),))).whole == {digest}


def test_of_a_video_a_named_sample_takes_no_more_than_itself_but_of_a_still_all(tmp_path: Path) -> None:
    samples = [replace(one, group=f"g{number}") for number, one in enumerate(figures(6))]
    samples[1] = replace(samples[1], row={"media_kind": "image"})
    releases.write(tmp_path, samples)
    assert find(tmp_path, Selection(sample_ids=(samples[0].id,))).whole == frozenset()
    assert find(tmp_path, Selection(sample_ids=(samples[1].id,))).whole == {hashlib.sha256(b"g1").digest()}


def frame(sample: str, content: bytes, source: bytes) -> pa.Table:
    row = {"sample_id": sample, "content_sha256": content, "source_sha256": source, "dhash64": 5, "media_kind": "video"}
    return pa.Table.from_pylist([row], ROWS)


def test_frames_of_a_source_that_were_never_chosen_may_not_come_back_either(family: Family) -> None:
    root, samples, _ = family
    source = hashlib.sha256(b"video-1").digest()
    tables = [frame("f" * 32, b"c" * 32, source), frame("e" * 32, b"d" * 32, bytes(32))]
    found = find(root, Selection(subjects=("person-video-1",)), lambda: tables)
    assert samples_of(found) == ids(samples, 3, 4, 5) | {"f" * 32}
    assert found.count == 3


def test_a_frame_never_chosen_whose_pixels_another_source_gave_takes_that_row_along(family: Family) -> None:
    root, samples, _ = family
    source, content = hashlib.sha256(b"video-1").digest(), hashlib.sha256(samples[20].image.tobytes()).digest()
    found = find(root, Selection(subjects=("person-video-1",)), lambda: [frame("f" * 32, content, source)])
    assert samples_of(found) == ids(samples, 3, 4, 5, 20) | {"f" * 32}


def test_a_frame_that_was_only_read_can_be_named(tmp_path: Path) -> None:
    tables = [frame("f" * 32, b"c" * 32, b"s" * 32)]
    found = find(tmp_path, Selection(sample_ids=("f" * 32,)), lambda: tables)
    assert samples_of(found) == {"f" * 32}
    assert (found.held, found.count) == ((), 1)


def test_parents_come_before_their_children(family: Family) -> None:
    root, _, folders = family
    assert [folder for folder, _, _ in releases_of(root)] == folders


def test_a_damaged_release_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    good, bad = releases.write(tmp_path, figures(6)), releases.write(tmp_path, figures(9))
    data = read_release_bytes(bad)
    (bad / "release.json").write_bytes(data[:-9])
    with pytest.raises(ErasureError, match=rf"{bad.name}.*nothing has been forgotten"):
        find(tmp_path, Selection(subjects=("person-video-1",)))
    (bad / "release.json").write_bytes(data)
    table = bad / "manifest" / "part-00000-of-00001.parquet"
    table.write_bytes(table.read_bytes()[:100])
    with pytest.raises(ErasureError, match=r"part-00000.*cannot be read"):
        find(tmp_path, Selection(subjects=("person-video-1",)))
    assert verify_release(good) == []


def test_a_release_that_is_a_link_is_refused(tmp_path: Path) -> None:
    folder = releases.write(tmp_path / "a", figures(6))
    (tmp_path / "b" / "releases").mkdir(parents=True)
    (tmp_path / "b" / "releases" / folder.name).symlink_to(folder)
    with pytest.raises(ErasureError, match="is a link"):
        find(tmp_path / "b", Selection(subjects=("person-video-1",)))


# Successors -----------------------------------------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, tuple[bytes, bytes, bytes]]:
    """Of every sample whose pixels a release has: hashes of its image, its mask, and the frame it came from."""
    rows = [
        r for path in sorted((folder / "shards").rglob("*.parquet")) for r in read_parquet(path, "shard").to_pylist()
    ]
    image = {row["sample_id"]: hashlib.sha256(row["image"]["bytes"]).digest() for row in rows}
    return {row["sample_id"]: (image[row["sample_id"]], row["mask_sha256"], row["content_sha256"]) for row in rows}


def test_successors_lack_what_goes_and_hold_all_else_unchanged(tmp_path: Path) -> None:
    samples = figures(24)
    first = releases.write(tmp_path, samples)
    second = releases.write(tmp_path, samples[:18], parents=(of(first),))
    before = {folder.name: contents(folder) for folder in (first, second)}
    parents = digests(tmp_path)
    found = find(tmp_path, Selection(subjects=("person-video-1",)))
    replaced: list[Replaced] = []
    for held in found.held:
        replaced.append(rewrite(held, "e-1", AT, replaced, traces_of(held), KEY))
    assert {path: digest for path, digest in digests(tmp_path).items() if path in parents} == parents
    for held in found.held:
        remove_release(held.folder)
    kept = {of(folder): folder for folder, _, _ in releases_of(tmp_path)}
    assert set(kept) == {one.successor for one in replaced}
    for one in replaced:
        folder = kept[str(one.successor)]
        assert verify_release(folder) == []
        release = read_release(folder)
        assert (release.parents, release.erasures) == ((one.fingerprint,), ("e-1",))
        gone = ids(samples, 3, 4, 5)
        assert contents(folder) == {name: row for name, row in before[one.name].items() if name not in gone}
    needles = {str(number): samples[number].id.encode() for number in (3, 4, 5)}
    jpegs = {f"jpeg {number}": releases.shard_row(samples[number]).image_jpeg for number in (3, 4, 5)}
    assert remains(tmp_path, needles | jpegs | {"uri": b"video-1.mp4"}) == []
    assert remains(tmp_path, {"other": samples[6].id.encode()}) != []


def test_the_cause_leads_to_what_the_parents_became(family: Family, tmp_path: Path) -> None:
    samples = family[1]
    first = releases.write(tmp_path, samples[:18])
    releases.write(tmp_path, samples, parents=(of(first),))
    replaced: list[Replaced] = []
    for held in find(tmp_path, Selection(subjects=("person-video-1",))).held:
        replaced.append(rewrite(held, "e-1", AT, replaced, traces_of(held), KEY))
    child = next(r for _, r, digest in releases_of(tmp_path) if digest == replaced[1].successor)
    cause = child.inputs["successor"]
    assert isinstance(cause, dict)
    assert (cause["by"], cause["erasure"], cause["parents"]) == ("forget", "e-1", [replaced[0].successor])


def test_a_release_of_nothing_else_has_no_successor(tmp_path: Path) -> None:
    samples = figures(3)
    folder = releases.write(tmp_path, samples)
    (held,) = find(tmp_path, Selection(subjects=("person-video-0",))).held
    assert held.emptied
    assert rewrite(held, "e-1", AT, [], traces_of(held), KEY).successor is None
    remove_release(folder)
    remove_release(folder)
    assert list((tmp_path / "releases").iterdir()) == []


def test_rewritten_twice_the_bytes_are_the_same(tmp_path: Path) -> None:
    releases.write(tmp_path, figures(12))
    (held,) = find(tmp_path, Selection(subjects=("person-video-1",))).held
    once = rewrite(held, "e-1", AT, [], traces_of(held), KEY)
    before = digests(tmp_path)
    assert rewrite(held, "e-1", AT, [], traces_of(held), KEY) == once
    assert digests(tmp_path) == before


def test_removed_first_is_what_makes_it_a_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = releases.write(tmp_path, figures(6))

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("manifests.forget.shutil.rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        remove_release(folder)
    assert folder.is_dir()
    assert releases_of(tmp_path) == []


def test_after_a_kill_the_releases_are_found_by_samples_and_pixels(family: Family) -> None:
    root, samples, folders = family
    by_id = held_of(root, Traces(samples=frozenset({samples[3].id})))
    by_pixels = held_of(root, Traces(contents=frozenset({hashlib.sha256(samples[3].image.tobytes()).digest()})))
    assert by_id == by_pixels
    assert [held.folder for held in by_id] == folders[:2]
    assert held_of(root, Traces(samples=frozenset({"0" * 32}), contents=frozenset({bytes(32)}))) == ()


def test_columns_that_a_table_lacks_are_null(tmp_path: Path) -> None:
    path = tmp_path / "probe.parquet"
    pq.write_table(frame("f" * 32, b"c" * 32, b"s" * 32).drop_columns(["subject_ids", "cluster_path"]), path)
    (row,) = read_rows(path).to_pylist()
    assert (row["sample_id"], row["subject_ids"], row["cluster_path"]) == ("f" * 32, None, None)
