"""The Croissant description: the reference reader takes it without an error and gives the release's pixels back."""

import hashlib
import json
import shutil
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import mlcroissant as mlc
import numpy as np
import pytest

from manifests.croissant import croissant, write_croissant
from manifests.datacard import DataCardError
from manifests.edits import Edit
from manifests.erasures import Erasure, Replaced, write_erasure
from manifests.paper import PaperError
from manifests.release import ReleaseError, fingerprint, read_release, read_release_bytes
from manifests.shard import ShardError
from manifests.successor import write_successor
from manifests.verify import verify_release
from tests.review import releases

AT = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def samples() -> list[releases.Sample]:
    return releases.figures(40)


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory, samples: list[releases.Sample]) -> Path:
    return releases.write(tmp_path_factory.mktemp("root"), samples)


def described(release: Path, **options: Any) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(croissant(release, **options))
    return value


def opened(file: Path) -> Any:
    dataset = mlc.Dataset(jsonld=str(file))
    assert not dataset.metadata.ctx.issues.errors
    return dataset


def test_the_reference_reader_finds_no_error_and_misses_only_what_a_person_must_say(
    release: Path, tmp_path: Path
) -> None:
    file = write_croissant(release, tmp_path / "croissant.json")
    warnings = opened(file).metadata.ctx.issues.warnings
    missing = {part for part in ("citeAs", "datePublished", "license", "version") for w in warnings if part in w}
    assert missing == {"citeAs", "datePublished"}
    assert len(warnings) == 2


def test_records_are_the_kept_samples_to_the_pixel(tmp_path: Path, samples: list[releases.Sample]) -> None:
    folder = releases.write(tmp_path, samples)
    dataset = opened(write_croissant(folder, folder / "croissant.json"))
    assert verify_release(folder) == []
    kept = {sample.id: sample for sample in samples if sample.decision == "keep"}
    seen: Counter[str] = Counter()
    for record in dataset.records("samples"):
        sample = kept[record["samples/sample_id"].decode()]
        assert np.array_equal(np.asarray(record["samples/mask"]), sample.mask)
        image = np.asarray(record["samples/image"])
        assert image.shape == sample.image.shape
        assert np.abs(image.astype(int) - sample.image).mean() < 8  # JPEG of a noisy picture
        assert record["samples/split"].decode() == sample.split
        assert (record["samples/height"], record["samples/width"]) == sample.mask.shape
        assert record["samples/label_source"] == b"pseudo"
        assert len(record["samples/content_sha256"]) == 32
        if sample.teacher_mask is None:
            assert record["samples/teacher_mask"] is None
        else:
            assert np.array_equal(np.asarray(record["samples/teacher_mask"]), sample.teacher_mask)
        seen[sample.id] += 1
    assert seen == Counter(dict.fromkeys(kept, 1))


def test_a_file_that_was_changed_is_found_through_its_file_object(
    tmp_path: Path, samples: list[releases.Sample]
) -> None:
    folder = releases.write(tmp_path, samples)
    value = described(folder)
    first = value["distribution"][0]
    for field in value["recordSet"][0]["field"]:
        field["source"] = {key: item for key, item in field["source"].items() if key != "fileSet"}
        field["source"]["fileObject"] = {"@id": first["@id"]}
    file = folder / "croissant.json"
    file.write_text(json.dumps(value))
    assert list(opened(file).records("samples"))
    shard = folder / first["contentUrl"]
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(bytes(data))
    with pytest.raises(Exception, match="Download") as caught:
        list(opened(file).records("samples"))
    assert "Hash" in str(caught.value.__cause__)


def test_every_shard_of_the_splits_is_listed_with_its_hash_and_no_other(release: Path) -> None:
    listed = {o["contentUrl"]: o for o in described(release)["distribution"] if o["@type"] == "cr:FileObject"}
    expected = {
        path.relative_to(release).as_posix(): path
        for split in ("train", "val", "test")
        for path in (release / "shards" / split).glob("*.parquet")
    }
    assert set(listed) == set(expected)
    for name, path in expected.items():
        assert listed[name]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_what_the_release_knows_is_told_and_what_only_a_person_knows_is_not(release: Path) -> None:
    value = described(release)
    assert value["license"] == ["CC-BY-4.0"]
    assert value["version"] == "1.0.0"
    assert value["identifier"] == f"urn:sha256:{fingerprint(read_release_bytes(release))}"
    teacher = releases.TEACHER.hex()
    assert value["rai:machineAnnotationTools"] == [f"teacher teacher-1 sha256:{teacher}"]
    counts = read_release(release).counts
    for number in (counts.read, counts.undecodable, counts.duplicate, counts.dropped, counts.held, counts.kept):
        assert str(number) in value["rai:dataCollection"]
    assert f"{counts.kept} by models" in value["rai:annotationsPerItem"]
    short = {cell for cell, rows in read_release(release).cells.items() if rows["actual"] < rows["target"]}
    assert {line.split(":")[0] for line in value["rai:dataBiases"]} == short
    unsaid = {"rai:dataUseCases", "rai:dataSocialImpact", "rai:dataReleaseMaintenancePlan", "citeAs", "creator"}
    assert not unsaid & set(value)
    assert "prov:wasDerivedFrom" not in value


def test_answers_of_the_data_card_fill_what_a_person_knows(release: Path) -> None:
    value = described(release, answers={"uses": "video calls", "impact": "little", "rights": True})
    assert (value["rai:dataUseCases"], value["rai:dataSocialImpact"]) == ("video calls", "little")
    with pytest.raises(DataCardError, match="no question"):
        croissant(release, answers={"nonsense": "x"})


def test_a_successor_names_its_parent_and_has_a_greater_version(tmp_path: Path, samples: list[releases.Sample]) -> None:
    first = releases.write(tmp_path, samples)
    kept = next(sample for sample in samples if sample.decision == "keep")
    edit = Edit(decision="drop", reasons=("review",), by="review")
    second, _ = write_successor(first, edits={kept.id: edit}, cause={"by": "test"}, at=AT)
    value = described(second)
    assert value["prov:wasDerivedFrom"] == [{"@id": f"urn:sha256:{fingerprint(read_release_bytes(first))}"}]
    assert value["version"] == "2.0.0"
    kept_on = opened(write_croissant(second, tmp_path / "c.json")).metadata.to_json()
    assert "prov:wasDerivedFrom" in kept_on
    assert "rai:dataCollection" in kept_on


def _erased(root: Path, *gone: Replaced) -> None:
    write_erasure(
        root,
        Erasure(
            id="e-" + "0" * 16, state="done", at=AT, reason="on request", count=1, keyed=("a" * 64,), replaced=gone
        ),
    )


def test_a_version_counts_the_parents_that_an_erasure_removed(tmp_path: Path, samples: list[releases.Sample]) -> None:
    _erased(
        tmp_path,
        Replaced(name="r-b", fingerprint="b" * 64, parents=("a" * 64,), successor="c" * 64),
        Replaced(name="r-a", fingerprint="a" * 64, parents=()),
    )
    folder = releases.write(tmp_path, samples[:6], parents=("b" * 64,))
    assert described(folder)["version"] == "3.0.0"


def test_parents_in_a_circle_give_no_version(tmp_path: Path, samples: list[releases.Sample]) -> None:
    _erased(tmp_path, Replaced(name="r-a", fingerprint="a" * 64, parents=("a" * 64,)))
    assert "version" not in described(releases.write(tmp_path, samples[:6], parents=("a" * 64,)))


def test_a_damaged_release_beside_it_changes_nothing(tmp_path: Path, samples: list[releases.Sample]) -> None:
    first = releases.write(tmp_path, samples)
    kept = next(sample for sample in samples if sample.decision == "keep")
    second, _ = write_successor(first, edits={kept.id: Edit(decision="drop", by="review")}, cause={"by": "t"}, at=AT)
    before = croissant(second)
    for name, data in {"damaged": b"{", "empty": b"", "huge": b"[" * 100_000}.items():
        (tmp_path / "releases" / name).mkdir()
        (tmp_path / "releases" / name / "release.json").write_bytes(data)
    assert croissant(second) == before
    (tmp_path / "alone").mkdir()
    shutil.move(second, tmp_path / "alone" / "copy")
    assert "version" not in described(tmp_path / "alone" / "copy"), "no releases beside it, no version"


def test_without_its_parents_a_version_is_not_known(tmp_path: Path, samples: list[releases.Sample]) -> None:
    assert "version" not in described(releases.write(tmp_path, samples[:6], parents=("a" * 64,)))


def test_unknown_licences_are_no_licence(tmp_path: Path) -> None:
    one = [replace(s, row={"licence": "unknown"}) for s in releases.figures(6)]
    assert "license" not in described(releases.write(tmp_path, one))


def test_a_release_of_which_nothing_is_kept_can_be_described(tmp_path: Path) -> None:
    folder = releases.write(tmp_path, [replace(s, decision="hold") for s in releases.figures(4)])
    value = opened(write_croissant(folder)).metadata.to_json()
    assert [entry["@id"] for entry in value["distribution"]] == ["shards"]


def test_equal_releases_have_equal_descriptions(release: Path, tmp_path: Path, samples: list[releases.Sample]) -> None:
    assert croissant(release) == croissant(releases.write(tmp_path, samples[::-1]))


def test_it_is_written_beside_the_release_and_never_into_it(tmp_path: Path) -> None:
    folder = releases.write(tmp_path, releases.figures(6))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert write_croissant(folder) == tmp_path / "reports" / folder.name / "croissant.json"
    for name in ("release.json", "stats.json", "shards/train/croissant.json"):
        with pytest.raises(PaperError, match="nobody may change"):
            write_croissant(folder, folder / name)
    with pytest.raises(PaperError, match="is a folder"):
        write_croissant(folder, tmp_path)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert [path.name for path in (tmp_path / "reports" / folder.name).iterdir()] == ["croissant.json"]


def test_a_changed_manifest_or_no_release_is_refused(tmp_path: Path) -> None:
    folder = releases.write(tmp_path, releases.figures(6))
    path = next((folder / "manifest").glob("*.parquet"))
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(ShardError, match="bytes have changed"):
        croissant(folder)
    with pytest.raises(ReleaseError):
        croissant(tmp_path)
