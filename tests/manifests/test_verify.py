import dataclasses
import hashlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from manifests.mask import encode_mask, mask_sha256
from manifests.release import Counts, FileEntry, Release, parse_release, render_release, sha256_hex
from manifests.schema import EVIDENCE, SHARD, embedding_schema, manifest_schema
from manifests.shard import PIXELS, ShardRow, encode_parquet, shard_table
from manifests.verify import FOLDERS, Problem, VerifyError, find_releases, verify_release

HEIGHT, WIDTH = 24, 32
PLACES = [
    ("train", 0, 0),
    ("train", 0, 1),
    ("train", 1, 0),
    ("val", 0, 0),
    ("hold", 0, 0),
    ("audit", 0, 0),
    ("dropped", None, None),
]
"""Of each sample its folder below shards/, the number of the shard, and its row; the last has no pixels."""
TRAIN_0, TRAIN_1 = (f"shards/train/{number:05d}-of-00002.parquet" for number in (0, 1))
MANIFEST, DROPPED = "manifest/part-00000-of-00001.parquet", "dropped/part-00000-of-00001.parquet"


def _mask(number: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    mask = np.zeros((HEIGHT, WIDTH), np.bool_)
    cv2.circle(mask.view(np.uint8), (12 + number, 12), 4 + number, 1, -1)
    return mask


def _shard_row(number: int) -> ShardRow:
    image = np.full((HEIGHT, WIDTH, 3), 40, np.uint8)
    image[_mask(number)] = 200
    return ShardRow(
        sample_id=f"{number:032x}",
        image_jpeg=bytes(cv2.imencode(".jpg", image)[1]),
        mask_png=encode_mask(_mask(number)),
        ignore_png=encode_mask(~_mask(number)),
        width=WIDTH,
        height=HEIGHT,
        aspect_bucket="4:3",
        weight=1.0,
        label_source="pseudo",
        label_confidence=0.5,
        content_sha256=bytes([number]) * 32,
        mask_sha256=mask_sha256(_mask(number)),
    )


def _manifest_row(number: int) -> dict[str, Any]:
    folder, shard, shard_row = PLACES[number]
    split = "dropped" if folder == "audit" else folder
    decision = {"hold": "hold", "dropped": "drop"}.get(split, "keep")
    texts = {
        field.name: "x" for field in manifest_schema(["light"]) if field.type == pa.string() and not field.nullable
    }
    return {
        **texts,
        "sample_id": f"{number:032x}",
        "content_sha256": bytes([number]) * 32,
        "source_sha256": bytes(32),
        "width": WIDTH,
        "height": HEIGHT,
        "exif_orientation": 1,
        "group_id": f"video-{split}",
        "cluster_path": [0, number],
        "attr": {"light": {"value": None, "provenance": "unknown"}},
        "label_source": "pseudo",
        "label_confidence": 0.5,
        "mask_sha256": mask_sha256(_mask(number)),
        "decision": decision,
        "decision_reasons": ["blur"] if decision == "drop" else [],
        "verdict": decision,
        "sampling_round": 0,
        "split": split,
        "subject_ids": [],
        "shard": shard,
        "shard_row": shard_row,
    }


def _write(path: Path, table: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_parquet(table, row_group_rows=2, plain=[n for n in PIXELS if n in table.column_names]))


def _entry(folder: Path, path: Path) -> FileEntry:
    name, data = path.relative_to(folder).as_posix(), path.read_bytes()
    if path.suffix != ".parquet":
        return FileEntry(path=name, bytes=len(data), sha256=sha256_hex(data))
    ids = pq.ParquetFile(path).read(columns=["sample_id"]).column(0).to_pylist()
    return FileEntry(
        path=name,
        bytes=len(data),
        sha256=sha256_hex(data),
        rows=len(ids),
        min_id=min(ids, default=None),
        max_id=max(ids, default=None),
        schema=FOLDERS[name.split("/")[0]],
    )


def _commit(folder: Path, **changes: Any) -> None:
    """Write a `release.json` that lists whatever lies in the folder, with the right hashes."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "release.json")
    release = Release(
        name="people",
        schemas={"release": "1.0", "manifest": "1.0", "shard": "1.0"},
        config_fingerprint=sha256_hex(b""),
        parents=(),
        run_id="run",
        tool={"version": "0"},
        packages={},
        seed=0,
        inputs={},
        models=(),
        counts=Counts(read=8, undecodable=1, duplicate=0, not_sampled=0, dropped=2, held=1, kept=4),
        splits={"train": 3, "val": 1, "hold": 1, "audit": 1},
        cells={},
        files=tuple(sorted((_entry(folder, path) for path in files), key=lambda entry: entry.path)),
        erasures=(),
    )
    (folder / "release.json").write_bytes(render_release(dataclasses.replace(release, **changes)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A good release of seven samples: four kept, one held, two dropped, one of these in the audit shard."""
    root = tmp_path / "releases" / "people"
    rows = [_manifest_row(number) for number in range(len(PLACES))]
    _write(root / MANIFEST, pa.Table.from_pylist(rows[:5], manifest_schema(["light"])))
    _write(root / DROPPED, pa.Table.from_pylist(rows[5:], manifest_schema(["light"])))
    for split, shard, count in sorted({(s, n, 2 if s == "train" else 1) for s, n, _ in PLACES if n is not None}):
        samples = [_shard_row(i) for i, place in enumerate(PLACES) if place[:2] == (split, shard)]
        _write(root / "shards" / split / f"{shard:05d}-of-{count:05d}.parquet", shard_table(samples))
    evidence = {"sample_id": "0" * 32, "name": "light", "provenance": "human", "source_id": "me", "recorded_at": 0}
    _write(root / "evidence/part-00000-of-00001.parquet", pa.Table.from_pylist([evidence, evidence], EVIDENCE))
    vectors = [{"sample_id": f"{number:032x}", "vector": [0.5, number]} for number in range(2)]
    _write(root / "embeddings/part-00000-of-00001.parquet", pa.Table.from_pylist(vectors, embedding_schema(2)))
    (root / "config.json").write_text("{}")
    _commit(root)
    return root


def _paths(problems: list[Problem]) -> set[str]:
    return {problem.path for problem in problems}


def _listed(folder: Path) -> list[str]:
    return [entry.path for entry in parse_release((folder / "release.json").read_bytes()).files]


def _edit(folder: Path, path: str, change: Callable[[list[dict[str, Any]]], object], **changes: Any) -> list[Problem]:
    """Change the rows of a Parquet file, list it again with its new hash, and verify."""
    table = pq.read_table(folder / path)
    rows = table.to_pylist()
    change(rows)
    _write(folder / path, pa.Table.from_pylist(rows, table.schema))
    _commit(folder, **changes)
    return verify_release(folder)


def test_a_good_release_has_no_problem(folder: Path) -> None:
    assert verify_release(folder) == []
    assert verify_release(folder, pixels=False) == []


def test_a_release_with_the_teachers_mask_beside_another_and_one_of_an_older_minor_version_are_good(
    folder: Path,
) -> None:
    other = {"bytes": encode_mask(_mask(5)), "path": None}
    assert _edit(folder, TRAIN_0, lambda rows: rows[0].update(teacher_mask=other)) == []
    for path in sorted(folder.rglob("shards/**/*.parquet")):
        table = pq.read_table(path).drop_columns(["teacher_mask"])
        older = {b"curate.schema": b"shard", b"curate.schema_version": b"1.1"}
        _write(path, table.replace_schema_metadata(older))
    _commit(folder)
    assert verify_release(folder) == []


def test_a_flipped_bit_anywhere_is_named_with_its_file(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for name in _listed(folder):
        good = (folder / name).read_bytes()
        for place in {0, len(good) - 1, *rng.integers(0, len(good), 4).tolist()}:
            bad = bytearray(good)
            bad[place] ^= 1 << int(rng.integers(8))
            (folder / name).write_bytes(bad)
            problems = verify_release(folder)
            assert _paths(problems) == {name}
            assert "the bytes have changed" in problems[0].message
        (folder / name).write_bytes(good)


def test_a_truncated_file_is_named(folder: Path) -> None:
    for name in _listed(folder):
        good = (folder / name).read_bytes()
        (folder / name).write_bytes(good[:-1])
        problems = verify_release(folder)
        assert _paths(problems) == {name}
        assert f"has {len(good) - 1} bytes, expected {len(good)}" in problems[0].message
        (folder / name).write_bytes(good)


def test_a_missing_file_is_named(folder: Path) -> None:
    for name in _listed(folder):
        (folder / name).rename(folder.parent / "away")
        assert verify_release(folder) == [Problem(path=name, message="is missing", changed=True)]
        (folder.parent / "away").rename(folder / name)


def test_every_file_that_is_not_listed_is_named_but_the_descriptions_beside_the_commit(folder: Path) -> None:
    for name in ("croissant.json", "datacard.md"):
        (folder / name).write_bytes(b"x")
    assert verify_release(folder) == []
    surplus = {"shards/train/00002-of-00003.parquet", "labels/images/face.jpg", ".hidden", "shards/croissant.json"}
    for name in surplus:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    problems = verify_release(folder)
    assert _paths(problems) == surplus
    assert all("surplus" in problem.message for problem in problems)


def test_many_surplus_files_are_counted(folder: Path) -> None:
    for number in range(100):
        (folder / f"{number}.jpg").write_bytes(b"x")
    *named, last = verify_release(folder)
    assert len(named) == 20
    assert last.message == "and 80 more problems"


def test_a_link_out_of_the_release_is_named(folder: Path) -> None:
    (folder / TRAIN_0).rename(folder.parent / "outside.parquet")
    (folder / TRAIN_0).symlink_to(folder.parent / "outside.parquet")
    assert verify_release(folder) == [Problem(path=TRAIN_0, message="is a link that leaves the release", changed=True)]


def test_swapped_shards_are_both_named(folder: Path) -> None:
    first, second = (folder / TRAIN_0).read_bytes(), (folder / TRAIN_1).read_bytes()
    (folder / TRAIN_0).write_bytes(second)
    (folder / TRAIN_1).write_bytes(first)
    assert _paths(verify_release(folder)) == {TRAIN_0, TRAIN_1}
    _commit(folder)  # even where release.json was made to fit
    assert _paths(verify_release(folder)) == {TRAIN_0, TRAIN_1}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b'"kept":4', b'"kept":3', "counts: read is 8"),
        (b'"seed":0', b'"seed": 0', "canonical form"),
        (b'"train":3', b'"train":2', "rows of shards/train/ are 3, but splits: train is 2"),
        (b'"held":1,"kept":4', b'"held":2,"kept":3', "rows with decision keep are 4, expected 3"),
        (b'"dropped":2,"duplicate":0', b'"dropped":1,"duplicate":1', "rows of dropped/ are 2"),
        (b'"release":"1.0"', b'"release":"9.0"', "version 9.0"),
    ],
)
def test_an_edited_release_file_is_named(folder: Path, old: bytes, new: bytes, message: str) -> None:
    path = folder / "release.json"
    data = path.read_bytes()
    assert data.count(old) == 1
    path.write_bytes(data.replace(old, new))
    problems = verify_release(folder)
    assert _paths(problems) == {"release.json"}
    assert any(message in problem.message for problem in problems)


def test_an_absent_release_file_is_named(folder: Path) -> None:
    (folder / "release.json").unlink()
    assert _paths(verify_release(folder)) == {"release.json"}


SHARD_CHANGES: dict[str, tuple[Callable[[list[dict[str, Any]]], object], str]] = {
    "mask exchanged": (lambda rows: rows[0]["mask"].update(bytes=encode_mask(_mask(5))), "exchanged"),
    "mask of another size": (lambda rows: rows[0]["mask"].update(bytes=encode_mask(_mask(0)[:, :9])), "mask is 9x24"),
    "teacher mask of another size": (
        lambda rows: rows[0].update(teacher_mask={"bytes": encode_mask(_mask(0)[:, :9]), "path": None}),
        "teacher_mask is 9x24, the mask 32x24",
    ),
    "teacher mask that says nothing": (
        lambda rows: rows[0].update(teacher_mask=rows[0]["mask"]),
        "teacher_mask is the mask: it must be null",
    ),
    "label of another source": (lambda rows: rows[0].update(label_source="human"), "label_source differs"),
    "another confidence": (lambda rows: rows[0].update(label_confidence=0.25), "label_confidence differs"),
    "confidence of a label that is gone": (
        lambda rows: rows[0].update(label_confidence=None),
        "label_confidence differs",
    ),
    "mask damaged": (lambda rows: rows[0]["mask"].update(bytes=rows[0]["mask"]["bytes"][:50]), "damaged"),
    "ignore of another size": (lambda rows: rows[0]["ignore"].update(bytes=encode_mask(_mask(0).T[:9])), "ignore mask"),
    "image truncated": (lambda rows: rows[1]["image"].update(bytes=rows[1]["image"]["bytes"][:-9]), "damaged JPEG"),
    "image no JPEG": (lambda rows: rows[1]["image"].update(bytes=b"GIF89a"), "must be a JPEG"),
    "size changed": (lambda rows: rows[1].update(width=31), "image must be a JPEG of 31x24, its header says 32x24"),
    "size huge": (lambda rows: rows[1].update(width=1 << 30, height=1 << 30), "over the limit"),
    "content hash changed": (lambda rows: rows[1].update(content_sha256=b"?" * 32), "content_sha256 differs"),
    "mask and its hash exchanged": (
        lambda rows: rows[0].update(mask={"bytes": encode_mask(_mask(5))}, mask_sha256=mask_sha256(_mask(5))),
        "mask_sha256 differs",
    ),
    "id changed": (lambda rows: rows[1].update(sample_id="f" * 32), "sample_id differs"),
    "order changed": (lambda rows: rows.reverse(), "must ascend"),
}


@pytest.mark.parametrize("name", SHARD_CHANGES)
def test_a_shard_that_contradicts_itself_or_the_manifest_is_named(folder: Path, name: str) -> None:
    change, message = SHARD_CHANGES[name]
    problems = _edit(folder, TRAIN_0, change)
    assert _paths(problems) == {TRAIN_0}
    assert any(message in problem.message for problem in problems)


def test_a_lost_row_is_named_with_its_shard_and_in_the_sums(folder: Path) -> None:
    problems = _edit(folder, TRAIN_0, lambda rows: rows.pop())
    assert _paths(problems) == {TRAIN_0, "release.json"}
    problems = _edit(folder, TRAIN_0, lambda _: None, splits={"train": 2, "val": 1, "hold": 1, "audit": 1})
    assert _paths(problems) == {TRAIN_0}
    assert "holds 1 rows, but the manifest places 2" in problems[0].message


MANIFEST_CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "unknown verdict": ({"verdict": "maybe"}, "verdict must be one of"),
    "unknown label source": ({"label_source": "guess"}, "label_source must be one of"),
    "unknown provenance": ({"attr": {"light": {"provenance": "guess"}}}, r"attr.light.provenance must be one of"),
    "dropped row among the kept": ({"decision": "drop", "split": "dropped"}, "do not belong in manifest/"),
    "held row in a split": ({"decision": "hold"}, "decision and split do not belong"),
    "kept row without a place": ({"shard": None, "shard_row": None}, "shard and shard_row must be set"),
    "half a place": ({"shard_row": None}, "shard and shard_row must be set together"),
    "kept row without a mask": ({"mask_sha256": None}, "must have mask_sha256"),
    "leak": ({"group_id": "video-val"}, "group video-val is in train and val"),
    "no such shard": ({"shard": 7}, "places 1 rows in shard 7 of train, which is not listed"),
    "twice": ({"sample_id": f"{5:032x}"}, "is there twice"),
}


@pytest.mark.parametrize("name", MANIFEST_CHANGES)
def test_a_manifest_row_that_breaks_a_rule_is_named(folder: Path, name: str) -> None:
    changes, message = MANIFEST_CHANGES[name]

    def change(rows: list[dict[str, Any]]) -> None:
        rows[4 if name == "twice" else 2].update(changes)

    problems = _edit(folder, MANIFEST, change)
    assert any(message in problem.message for problem in problems)
    guilty = {"no such shard": {MANIFEST, TRAIN_1}, "twice": {DROPPED, "shards/hold/00000-of-00001.parquet"}}
    assert _paths(problems) == guilty.get(name, {MANIFEST})


def test_a_kept_row_in_the_dropped_table_is_named(folder: Path) -> None:
    problems = _edit(folder, DROPPED, lambda rows: rows[1].update(decision="keep"))
    assert _paths(problems) == {DROPPED}


def test_parts_of_the_manifest_must_follow_each_other(folder: Path) -> None:
    table = pq.read_table(folder / MANIFEST)
    (folder / MANIFEST).unlink()
    _write(folder / "manifest/part-00000-of-00002.parquet", table.slice(2))
    _write(folder / "manifest/part-00001-of-00002.parquet", table.slice(0, 2))
    _commit(folder)
    problems = verify_release(folder)
    assert _paths(problems) == {"manifest/part-00001-of-00002.parquet"}
    assert "ids must follow" in problems[0].message


def test_a_wrong_list_of_rows_and_ids_is_named_with_the_file(folder: Path) -> None:
    release = parse_release((folder / "release.json").read_bytes())
    for changes in ({"rows": 4}, {"max_id": "e" * 32}):
        files = tuple(dataclasses.replace(f, **changes) if f.path == MANIFEST else f for f in release.files)
        (folder / "release.json").write_bytes(render_release(dataclasses.replace(release, files=files)))
        problems = verify_release(folder)
        assert MANIFEST in _paths(problems) <= {MANIFEST, "release.json"}


def test_a_shard_of_another_schema_version_or_without_a_column_is_named(folder: Path) -> None:
    table = pq.read_table(folder / TRAIN_0)
    newer = table.replace_schema_metadata({**SHARD.metadata, b"curate.schema_version": b"2.0"})
    for changed, message in ((newer, "version 2.0"), (table.drop_columns("weight"), "'weight' is missing")):
        _write(folder / TRAIN_0, changed)
        _commit(folder)
        problems = verify_release(folder)
        assert _paths(problems) == {TRAIN_0}
        assert message in problems[0].message


def test_a_file_in_the_wrong_folder_or_with_a_strange_name_is_named(folder: Path) -> None:
    for name in ("shards/train/part.parquet", "shards/other/00000-of-00001.parquet"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / TRAIN_1).rename(folder / name)
        _commit(folder)
        assert name in _paths(verify_release(folder))
        (folder / name).rename(folder / TRAIN_1)


def test_bytes_that_are_no_parquet_are_named_and_the_next_file_is_still_read(folder: Path) -> None:
    release = parse_release((folder / "release.json").read_bytes())
    junk = b"PAR1" + bytes(range(256)) + b"\x10\0\0\0PAR1"
    for name in (MANIFEST, TRAIN_0):
        (folder / name).write_bytes(junk)
    digest = hashlib.sha256(junk).hexdigest()
    files = tuple(
        dataclasses.replace(f, bytes=len(junk), sha256=digest) if f.path in (MANIFEST, TRAIN_0) else f
        for f in release.files
    )
    (folder / "release.json").write_bytes(render_release(dataclasses.replace(release, files=files)))
    assert _paths(verify_release(folder)) == {MANIFEST, TRAIN_0}


def test_damage_that_release_json_vouches_for_never_raises_and_blames_no_other_file(folder: Path) -> None:
    rng = np.random.default_rng(1)
    release = parse_release((folder / "release.json").read_bytes())
    for name in (MANIFEST, DROPPED, TRAIN_0, "embeddings/part-00000-of-00001.parquet"):
        good = (folder / name).read_bytes()
        for _ in range(12):
            bad = bytearray(good)
            for place in rng.integers(0, len(good), 3):
                bad[place] ^= 1 << int(rng.integers(8))
            (folder / name).write_bytes(bad)
            digest = sha256_hex(bytes(bad))
            files = tuple(dataclasses.replace(f, sha256=digest) if f.path == name else f for f in release.files)
            (folder / "release.json").write_bytes(render_release(dataclasses.replace(release, files=files)))
            problems = verify_release(folder)
            assert not problems or name in _paths(problems)
        (folder / name).write_bytes(good)


def test_many_problems_of_one_file_are_counted_not_listed(folder: Path) -> None:
    def repeat(rows: list[dict[str, Any]]) -> None:
        rows[:] = [{**rows[0], "sample_id": f"{number:032x}", "verdict": "?"} for number in range(50)]

    told = [problem for problem in _edit(folder, MANIFEST, repeat) if problem.path == MANIFEST]
    assert len(told) == 21
    assert told[-1].message == "and 30 more problems"


def test_releases_are_found_from_the_root_or_given_alone(folder: Path) -> None:
    root = folder.parent.parent
    (root / "releases" / "unfinished").mkdir()
    assert find_releases(root) == find_releases(folder) == [folder]
    with pytest.raises(VerifyError, match="publish again"):
        find_releases(root / "releases" / "unfinished")


def test_verification_needs_no_torch() -> None:
    code = "import sys, manifests.verify; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
