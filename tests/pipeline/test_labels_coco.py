"""Masks go out to annotation tools and come back as a new release: whole, or not at all."""

import copy
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from manifests.mask import decode_mask, encode_mask, mask_sha256
from manifests.release import fingerprint, read_release, read_release_bytes
from manifests.verify import verify_release
from pipeline.brush_rle import decode_brush, encode_brush
from pipeline.coco import Mask, decode_segmentation
from pipeline.errors import InputError, StorageError, UsageError
from pipeline.labels_coco import ANNOTATIONS, TASKS, Imported, LabelsError, encode_runs, export_labels, import_labels
from review.apply import apply_reviews
from review.event import Reviewer
from review.log import ReviewLog
from review.query import Query
from tests.review import releases

AT = datetime(2026, 3, 1, tzinfo=UTC)
Change = Callable[[dict[str, Any]], Any]


@pytest.fixture(scope="module")
def samples() -> list[releases.Sample]:
    """Drawn samples; of the dropped ones, number 15 has no pixels in the release."""
    return [replace(sample, audit=sample.number != 15) for sample in releases.figures(24)]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, samples: list[releases.Sample]) -> Path:
    return releases.write(tmp_path_factory.mktemp("written"), samples)


@pytest.fixture
def release(tmp_path: Path, written: Path) -> Path:
    return shutil.copytree(written, tmp_path / "root" / "releases" / written.name)


@pytest.fixture
def drawable(samples: list[releases.Sample]) -> list[releases.Sample]:
    return sorted((s for s in samples if s.decision != "drop" or s.audit), key=lambda s: s.id)


def exported(release: Path, tmp_path: Path, ids: list[str]) -> dict[str, Any]:
    export_labels(release, tmp_path / "out", ids=ids)
    coco: dict[str, Any] = json.loads((tmp_path / "out" / ANNOTATIONS).read_text())
    return coco


def given(tmp_path: Path, value: Any, name: str = "from_tool.json") -> Path:
    path = tmp_path / name
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def hashes(root: Path) -> dict[str, str]:
    return {
        str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in root.rglob("*") if p.is_file()
    }


def masks_of(release: Path) -> dict[str, Mask]:
    rows = [row for path in (release / "shards").rglob("*.parquet") for row in pq.read_table(path).to_pylist()]
    return {row["sample_id"]: decode_mask(row["mask"]["bytes"], 1 << 24) for row in rows}


def rows_of(release: Path) -> dict[str, dict[str, Any]]:
    paths = [*(release / "manifest").glob("*.parquet"), *(release / "dropped").glob("*.parquet")]
    return {row["sample_id"]: row for path in paths for row in pq.read_table(path).to_pylist()}


def square(mask: Mask) -> Mask:
    """Another mask of the same size, with a hole and touching the left border."""
    other = np.zeros_like(mask)
    other[20:60, 0:50] = True
    other[30:40, 10:20] = False
    return other


def polygon_of(left: float, top: float, right: float, bottom: float) -> list[float]:
    return [left, top, right, top, right, bottom, left, bottom]


# Out ------------------------------------------------------------------------------------------------------------------


def test_what_goes_out_is_what_the_release_holds(
    release: Path, tmp_path: Path, drawable: list[releases.Sample]
) -> None:
    coco = exported(release, tmp_path, [s.id for s in drawable])
    own = fingerprint(read_release_bytes(release))
    assert coco["curate"]["release"] == own
    assert [image["sample_id"] for image in coco["images"]] == [s.id for s in drawable]
    regions = {entry["image_id"]: entry for entry in coco["annotations"]}
    manifest = rows_of(release)
    for image, sample in zip(coco["images"], drawable, strict=True):
        assert (image["height"], image["width"]) == sample.mask.shape
        assert image["content_sha256"] == manifest[sample.id]["content_sha256"].hex()
        assert image["file_name"] == f"{sample.id}_{image['content_sha256'][:16]}_{own[:16]}.jpg"
        mask = decode_segmentation(regions[image["id"]]["segmentation"], *sample.mask.shape)
        assert np.array_equal(mask, sample.mask)
        assert regions[image["id"]]["area"] == sample.mask.sum()
        png = (tmp_path / "out" / "masks" / image["file_name"]).with_suffix(".png").read_bytes()
        assert np.array_equal(decode_mask(png, 1 << 24), sample.mask)
        shown = cv2.imread(str(tmp_path / "out" / "images" / image["file_name"]))
        assert shown.shape == (*sample.mask.shape, 3)


def test_tasks_of_label_studio_paint_the_same_masks(
    release: Path, tmp_path: Path, drawable: list[releases.Sample]
) -> None:
    exported(release, tmp_path, [s.id for s in drawable])
    tasks = json.loads((tmp_path / "out" / TASKS).read_text())
    for task, sample in zip(tasks, drawable, strict=True):
        (region,) = task["predictions"][0]["result"]
        assert (region["original_height"], region["original_width"]) == sample.mask.shape
        assert np.array_equal(decode_brush(region["value"]["rle"], *sample.mask.shape), sample.mask)


def test_the_same_export_has_the_same_bytes(release: Path, tmp_path: Path, drawable: list[releases.Sample]) -> None:
    ids = [s.id for s in drawable]
    export_labels(release, tmp_path / "a", ids=ids)
    export_labels(release, tmp_path / "b", ids=ids[::-1])
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b")


def test_no_source_of_a_frame_goes_out(release: Path, tmp_path: Path, drawable: list[releases.Sample]) -> None:
    exported(release, tmp_path, [s.id for s in drawable])
    told = "".join((tmp_path / "out" / name).read_text() for name in (ANNOTATIONS, TASKS))
    assert "/videos/" not in told
    assert "video-" not in told
    assert "person-" not in told


def test_a_query_says_which(release: Path, tmp_path: Path, samples: list[releases.Sample]) -> None:
    done = export_labels(release, tmp_path / "out", query=Query(decision=("drop",)))
    dropped = [s for s in samples if s.decision == "drop"]
    assert done.samples == sum(s.audit for s in dropped)
    assert done.without_pixels == tuple(sorted(s.id for s in dropped if not s.audit))


def test_what_reviewers_want_drawn_again_goes_out(
    release: Path, tmp_path: Path, drawable: list[releases.Sample]
) -> None:
    log, anna = ReviewLog.open(release), Reviewer(name="anna")
    for sample, verdict in ((drawable[0], "redraw"), (drawable[1], "approve"), (drawable[2], "redraw")):
        log.append("sample_decision", reviewer=anna, target={"ids": [sample.id]}, verdict=verdict, reasons=[])
    export_labels(release, tmp_path / "out", redraw=True)
    coco = json.loads((tmp_path / "out" / ANNOTATIONS).read_text())
    assert [image["sample_id"] for image in coco["images"]] == [drawable[0].id, drawable[2].id]


def test_a_redraw_that_was_applied_goes_out_and_comes_back_kept(
    release: Path, tmp_path: Path, drawable: list[releases.Sample]
) -> None:
    sample = next(s for s in drawable if s.decision == "keep")
    target = {"ids": [sample.id]}
    ReviewLog.open(release).append(
        "sample_decision",
        reviewer=Reviewer(name="anna"),
        target=target,
        verdict="redraw",
        reasons=["an arm is missing"],
    )
    applied = apply_reviews(release, at=AT).folder
    assert rows_of(applied)[sample.id]["decision"] == "hold"
    assert export_labels(applied, tmp_path / "out", redraw=True).samples == 1
    (path,) = (tmp_path / "out" / "masks").glob("*.png")
    path.write_bytes(encode_mask(square(sample.mask)))
    done = import_labels(applied, tmp_path / "out", at=AT)
    row = rows_of(done.folder)[sample.id]
    assert (row["decision"], row["label_source"], row["split"]) == ("keep", "human_corrected", sample.split)
    with pytest.raises(LabelsError, match="was exported from release"):
        import_labels(release, tmp_path / "out", at=AT)


def test_export_refuses_what_it_cannot_do(release: Path, tmp_path: Path, samples: list[releases.Sample]) -> None:
    bare = next(s for s in samples if s.decision == "drop" and not s.audit)
    with pytest.raises(UsageError, match="exactly one"):
        export_labels(release, tmp_path / "out")
    with pytest.raises(UsageError, match="exactly one"):
        export_labels(release, tmp_path / "out", ids=[], redraw=True)
    with pytest.raises(InputError, match="drawn again"):
        export_labels(release, tmp_path / "out", redraw=True)
    with pytest.raises(InputError, match="not in the release"):
        export_labels(release, tmp_path / "out", ids=["0" * 32])
    with pytest.raises(InputError, match="without pixels"):
        export_labels(release, tmp_path / "out", ids=[bare.id])
    with pytest.raises(InputError, match="named twice"):
        export_labels(release, tmp_path / "out", ids=[samples[0].id] * 2)
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "work.txt").write_text("mine")
    with pytest.raises(StorageError, match="there already"):
        export_labels(release, tmp_path / "out", ids=[samples[0].id])
    assert (tmp_path / "out" / "work.txt").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


# In: what a good file does --------------------------------------------------------------------------------------------


def test_a_corrected_mask_makes_a_new_release(release: Path, tmp_path: Path, drawable: list[releases.Sample]) -> None:
    kept, held, dropped = (next(s for s in drawable if s.decision == d) for d in ("keep", "hold", "drop"))
    coco = exported(release, tmp_path, [kept.id, held.id, dropped.id])
    entries = {image["sample_id"]: image["id"] for image in coco["images"]}
    for sample in (kept, held, dropped):
        entry = next(e for e in coco["annotations"] if e["image_id"] == entries[sample.id])
        entry["segmentation"]["counts"] = encode_runs(square(sample.mask))
    before = hashes(release)
    file = given(tmp_path, coco)
    done = import_labels(release, file, at=AT)
    assert hashes(release) == before
    assert verify_release(done.folder) == []
    assert read_release(done.folder).parents == (fingerprint(read_release_bytes(release)),)
    assert done.changed == tuple(sorted(s.id for s in (kept, held, dropped)))
    old, new, masks = rows_of(release), rows_of(done.folder), masks_of(done.folder)
    for sample in (kept, held, dropped):
        row = new[sample.id]
        assert np.array_equal(masks[sample.id], square(sample.mask))
        assert row["mask_sha256"] == mask_sha256(square(sample.mask))
        assert (row["decision"], row["label_source"]) == ("keep", "human_corrected")
        assert row["split"] == releases.split_of(sample.group, releases.SEED, val=releases.VAL, test=releases.TEST)
    assert new[held.id]["decision_reasons"] == ["redrawn"]
    assert new[kept.id]["decision_reasons"] == old[kept.id]["decision_reasons"]
    untouched = set(old) - {kept.id, held.id, dropped.id}
    places = ("shard", "shard_row", "embedding_shard", "embedding_row")  # rows may move, nothing else changes
    assert all(
        {k: v for k, v in old[i].items() if k not in places} == {k: v for k, v in new[i].items() if k not in places}
        for i in untouched
    )
    said = [row for path in (done.folder / "evidence").glob("*.parquet") for row in pq.read_table(path).to_pylist()]
    mine = [row for row in said if row["name"] == "mask"]
    assert {row["sample_id"] for row in mine} == set(done.changed)
    for row in mine:
        assert (row["provenance"], row["source_id"], row["recorded_at"]) == ("human", "coco: from_tool.json", AT)
        assert row["source_sha256"] == hashlib.sha256(file.read_bytes()).digest()


def test_masks_that_did_not_change_are_told_and_not_written(
    release: Path, tmp_path: Path, drawable: list[releases.Sample]
) -> None:
    first, second = drawable[:2]
    coco = exported(release, tmp_path, [first.id, second.id])
    coco["annotations"][0]["segmentation"]["counts"] = encode_runs(square(first.mask))
    done = import_labels(release, given(tmp_path, coco), at=AT)
    assert (done.changed, done.same) == ((first.id,), (second.id,))
    assert rows_of(done.folder)[second.id]["label_source"] == rows_of(release)[second.id]["label_source"]


def test_an_export_that_comes_back_as_it_went_changes_nothing(
    release: Path, tmp_path: Path, drawable: list[releases.Sample]
) -> None:
    exported(release, tmp_path, [s.id for s in drawable])
    before = hashes(release.parent.parent)
    for source in (tmp_path / "out" / ANNOTATIONS, tmp_path / "out"):
        with pytest.raises(InputError, match=f"all {len(drawable)} masks are as the release has them"):
            import_labels(release, source, at=AT)
    assert hashes(release.parent.parent) == before


def test_equal_labels_give_an_equal_release(release: Path, tmp_path: Path, drawable: list[releases.Sample]) -> None:
    coco = exported(release, tmp_path, [drawable[0].id])
    coco["annotations"][0]["segmentation"]["counts"] = encode_runs(square(drawable[0].mask))
    file = given(tmp_path, coco)
    one, two = (import_labels(release, file, at=AT, output=tmp_path / name) for name in "ab")
    assert one.fingerprint == two.fingerprint
    assert hashes(one.folder) == hashes(two.folder)
    assert import_labels(release, file, at=AT, output=tmp_path / "a") == one


def test_an_image_without_a_region_is_empty_only_where_somebody_says_so(
    release: Path, tmp_path: Path, drawable: list[releases.Sample]
) -> None:
    coco = exported(release, tmp_path, [s.id for s in drawable[:2]])
    coco["annotations"] = coco["annotations"][1:]
    file = given(tmp_path, coco)
    with pytest.raises(LabelsError, match="--empty"):
        import_labels(release, file, at=AT)
    done = import_labels(release, file, at=AT, empty=True)
    assert done.changed == (drawable[0].id,)
    assert not masks_of(done.folder)[drawable[0].id].any()


def test_regions_of_the_category_ignore_are_what_no_loss_may_use(
    release: Path, tmp_path: Path, drawable: list[releases.Sample]
) -> None:
    sample = drawable[0]
    coco = exported(release, tmp_path, [sample.id])
    coco["categories"].append({"id": 7, "name": "Ignore"})
    polygon = [polygon_of(0, 0, 10, 5)]
    coco["annotations"].append({"id": 99, "image_id": 1, "category_id": 7, "segmentation": polygon, "iscrowd": 0})
    done = import_labels(release, given(tmp_path, coco), at=AT)
    rows = [row for path in (done.folder / "shards").rglob("*.parquet") for row in pq.read_table(path).to_pylist()]
    png = next(row["ignore"]["bytes"] for row in rows if row["sample_id"] == sample.id)
    wanted = np.zeros_like(sample.mask)
    wanted[:5, :10] = True
    assert np.array_equal(decode_mask(png, 1 << 24), wanted & ~sample.mask)


# In: the dialects -----------------------------------------------------------------------------------------------------


def cvat_coco(coco: dict[str, Any]) -> None:
    """As CVAT writes "COCO 1.0": its own image records, so nothing of ours but the name; masks plain, as crowds."""
    coco.pop("curate")
    for image in coco["images"]:
        del image["sample_id"], image["content_sha256"]
        image |= {"license": 0, "flickr_url": "", "coco_url": "", "date_captured": 0, "id": image["id"] + 40}
    for entry in coco["annotations"]:
        entry |= {"image_id": entry["image_id"] + 40, "attributes": {"occluded": False}}


def studio_coco(coco: dict[str, Any]) -> None:
    """As Label Studio exports COCO: ids from 0, the name behind the prefix of an upload."""
    cvat_coco(coco)
    coco["categories"] = [{"id": 0, "name": "person"}]
    for entry in coco["annotations"]:
        entry["category_id"] = 0
    for image in coco["images"]:
        image["file_name"] = f"images/1a2b3c4d-{image['file_name']}"


@pytest.mark.parametrize("dialect", [cvat_coco, studio_coco])
@pytest.mark.parametrize("how", ["runs", "polygon"])
def test_coco_of_the_tools_is_read(
    release: Path, tmp_path: Path, drawable: list[releases.Sample], dialect: Change, how: str
) -> None:
    sample = drawable[0]
    coco = exported(release, tmp_path, [sample.id])
    wanted = np.zeros_like(sample.mask)
    wanted[10:30, 5:25] = True
    dialect(coco)
    (entry,) = coco["annotations"]
    if how == "polygon":
        entry |= {"segmentation": [polygon_of(5, 10, 25, 30)], "iscrowd": 0}
    else:
        entry["segmentation"]["counts"] = encode_runs(wanted)
    done = import_labels(release, given(tmp_path, coco), at=AT)
    assert np.array_equal(masks_of(done.folder)[sample.id], wanted)


def cvat_xml(name: str, mask: Mask, regions: str) -> str:
    height, width = mask.shape
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version><meta><task/></meta>'
        f'<image id="0" name="{name}" width="{width}" height="{height}">{regions}</image>\n</annotations>\n'
    )


def cvat_mask(mask: Mask) -> str:
    """A mask as CVAT writes it: runs along the rows of its own box, background first."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    tight = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    runs = encode_runs(np.ascontiguousarray(tight.reshape(1, -1)))
    told = ", ".join(map(str, runs))
    box = f'left="{columns[0]}" top="{rows[0]}" width="{tight.shape[1]}" height="{tight.shape[0]}"'
    return f'<mask label="person" source="manual" occluded="0" rle="{told}" {box} z_order="0"></mask>'


def test_cvat_xml_is_read(release: Path, tmp_path: Path, drawable: list[releases.Sample]) -> None:
    sample = drawable[0]
    coco = exported(release, tmp_path, [sample.id])
    name = coco["images"][0]["file_name"]
    polygon = '<polygon label="person" source="manual" points="100.0,0.0;110.0,0.0;110.0,4.0;100.0,4.0"/>'
    wanted = square(sample.mask)
    wanted[:4, 100:110] = True
    text = cvat_xml(name, sample.mask, cvat_mask(square(sample.mask)) + polygon)
    done = import_labels(release, given(tmp_path, text, "annotations.xml"), at=AT, tool="cvat")
    assert np.array_equal(masks_of(done.folder)[sample.id], wanted)


def studio_task(name: str, mask: Mask, *regions: dict[str, Any]) -> dict[str, Any]:
    common = {"original_width": mask.shape[1], "original_height": mask.shape[0], "image_rotation": 0}
    return {
        "id": 1,
        "data": {"image": f"/data/local-files/?d=images/{name}"},
        "annotations": [{"id": 5, "was_cancelled": False, "result": [common | region for region in regions]}],
    }


def brush(mask: Mask) -> dict[str, Any]:
    return {"type": "brushlabels", "value": {"format": "rle", "rle": encode_brush(mask), "brushlabels": ["person"]}}


def test_label_studio_json_is_read(release: Path, tmp_path: Path, drawable: list[releases.Sample]) -> None:
    sample = drawable[0]
    coco = exported(release, tmp_path, [sample.id])
    height, width = sample.mask.shape
    wanted = square(sample.mask)
    wanted[:9, 60:120] = True
    points = [[50.0, 0.0], [100.0, 0.0], [100.0, 10.0], [50.0, 10.0]]
    polygon = {"type": "polygonlabels", "value": {"points": points, "polygonlabels": ["person"]}}
    assert (height, width) == (90, 120)
    tasks = [studio_task(coco["images"][0]["file_name"], sample.mask, brush(square(sample.mask)), polygon)]
    done = import_labels(release, given(tmp_path, tasks), at=AT, tool="label-studio")
    assert np.array_equal(masks_of(done.folder)[sample.id], wanted)


def test_a_folder_of_masks_is_read(release: Path, tmp_path: Path, drawable: list[releases.Sample]) -> None:
    first, second = drawable[:2]
    exported(release, tmp_path, [first.id, second.id])
    path = next((tmp_path / "out" / "masks").glob(f"{first.id}*"))
    path.write_bytes(cv2.imencode(".png", square(first.mask).astype(np.uint8) * 255)[1].tobytes())
    done = import_labels(release, tmp_path / "out", at=AT)
    assert (done.changed, done.same, done.dialect) == ((first.id,), (second.id,), "masks")
    assert np.array_equal(masks_of(done.folder)[first.id], square(first.mask))


FOREIGN = {
    "LabelMe": {"shapes": [], "imagePath": "a.jpg"},
    "VGG Image Annotator": {"_via_img_metadata": {}},
    "Datumaro": {"items": [], "categories": {}},
    "CVAT job": {"shapes": [], "tracks": [], "tags": []},
    "Supervisely": {"objects": [], "size": {}},
    "COCO results": [{"image_id": 1, "category_id": 1, "segmentation": {}, "score": 0.5}],
    "JSON-MIN": [{"image": "a.jpg", "annotation_id": 3, "label": []}],
    "no known dialect": {"anything": 1},
}


@pytest.mark.parametrize("what", FOREIGN)
def test_other_dialects_are_refused_by_name(release: Path, tmp_path: Path, what: str) -> None:
    with pytest.raises(InputError, match=what):
        import_labels(release, given(tmp_path, FOREIGN[what]), at=AT)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("<annotations><track/></annotations>", "CVAT for video"),
        ("<annotation><object/></annotation>", "XML of no known dialect"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><annotations/>', "no document type"),
        ("<annotations>", "no valid XML"),
    ],
)
def test_other_xml_is_refused(release: Path, tmp_path: Path, text: str, what: str) -> None:
    with pytest.raises(InputError, match=what):
        import_labels(release, given(tmp_path, text, "a.xml"), at=AT)


def test_the_tool_must_be_one_that_writes_the_dialect(release: Path, tmp_path: Path) -> None:
    exported(release, tmp_path, [next(iter(rows_of(release)))])
    file = tmp_path / "out" / ANNOTATIONS
    with pytest.raises(UsageError, match="did you mean 'cvat'"):
        import_labels(release, file, at=AT, tool="cvta")
    with pytest.raises(InputError, match="'masks' does not write"):
        import_labels(release, file, at=AT, tool="masks")


# In: what a bad file does ---------------------------------------------------------------------------------------------


def of_image(key: str, value: Any) -> Change:
    def change(coco: dict[str, Any]) -> None:
        coco["images"][0][key] = value

    return change


def of_region(value: Any) -> Change:
    def change(coco: dict[str, Any]) -> None:
        coco["annotations"][0]["segmentation"] = value

    return change


def renamed(what: int, text: str) -> Change:
    def change(coco: dict[str, Any]) -> None:
        image = coco["images"][0]
        parts = image["file_name"].removesuffix(".jpg").split("_")
        parts[what] = text
        image["file_name"] = "_".join(parts) + ".jpg"
        image.pop("sample_id")

    return change


def twice(coco: dict[str, Any]) -> None:
    coco["images"].append({**coco["images"][0], "id": 50})


def another_category(coco: dict[str, Any]) -> None:
    coco["categories"][0]["name"] = "car"


def from_another(coco: dict[str, Any]) -> None:
    coco["curate"]["release"] = "f" * 64


BAD: dict[str, tuple[Change, str]] = {
    "unknown sample": (renamed(0, "0" * 32), "is not in this release"),
    "other content": (renamed(1, "0" * 16), "is of other content"),
    "stale release": (renamed(2, "0" * 16), "was exported from release 0000"),
    "stale file": (from_another, "was exported from release ffff"),
    "foreign name": (of_image("file_name", "frame_000001.jpg"), "keep the names"),
    "contradicting id": (of_image("sample_id", "0" * 32), "states the sample_id"),
    "contradicting content": (of_image("content_sha256", "0" * 64), "states the content_sha256"),
    "duplicate": (twice, "is there 2 times"),
    "sides exchanged": (lambda c: c["images"][0].update(width=90, height=120), "must be 120x90, is 90x120"),
    "no size": (of_image("width", "120"), "height and width must be integers"),
    "category": (another_category, "must be of the category 'person'"),
    "box": (of_region([]), "a box is no mask"),
    "truncated": (of_region({"size": [90, 120], "counts": [10]}), "must add up to 10800"),
    "empty runs": (of_region({"size": [90, 120], "counts": []}), "must add up to 10800"),
    "negative": (of_region({"size": [90, 120], "counts": [-5, 10805]}), "integers >= 0"),
    "overrun": (of_region({"size": [90, 120], "counts": [10801]}), "must add up to 10800"),
    "huge": (of_region({"size": [200_000, 200_000], "counts": [4 * 10**10]}), "size must be the image's"),
    "swapped": (of_region({"size": [120, 90], "counts": [10800]}), "size must be the image's"),
    "packed nonsense": (of_region({"size": [90, 120], "counts": "~~~"}), "compressed counts"),
    "other run lengths": (of_region({"format": "rle", "rle": [0, 1]}), "a segmentation must be"),
    "string": (of_region("0 5 3"), "a segmentation must be"),
    "not finite": (of_region([[0, 0, float("inf"), 0, 5, 5]]), "numbers within"),
    "unknown image": (lambda c: c["annotations"][0].update(image_id=77), "must name an image of the file"),
}


@pytest.mark.parametrize("what", BAD)
def test_one_bad_row_and_nothing_is_imported(
    release: Path, tmp_path: Path, drawable: list[releases.Sample], what: str
) -> None:
    coco = exported(release, tmp_path, [s.id for s in drawable[:3]])
    for entry, sample in zip(coco["annotations"], drawable[:3], strict=True):
        entry["segmentation"]["counts"] = encode_runs(square(sample.mask))
    change, message = BAD[what]
    change(coco)
    before = hashes(release.parent.parent)
    with pytest.raises(LabelsError, match=message) as caught:
        import_labels(release, given(tmp_path, coco), at=AT)
    assert "nothing was imported" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert hashes(release.parent.parent) == before


def test_every_fault_of_every_row_is_reported(release: Path, tmp_path: Path, drawable: list[releases.Sample]) -> None:
    coco = exported(release, tmp_path, [s.id for s in drawable])
    for number, entry in enumerate(coco["annotations"]):
        entry["segmentation"] = {"size": [90, 120], "counts": [number + 1]}
    coco["images"][0]["content_sha256"] = "0" * 64
    with pytest.raises(LabelsError) as caught:
        import_labels(release, given(tmp_path, coco), at=AT)
    rows = [fault.row for fault in caught.value.faults]
    assert set(rows) == {f"image {image['file_name']!r}" for image in coco["images"]}
    assert rows.count(f"image {coco['images'][0]['file_name']!r}") > 1
    assert f"and {len(rows) - 10} more" in str(caught.value)


def test_a_sample_without_pixels_cannot_be_corrected(
    release: Path, tmp_path: Path, samples: list[releases.Sample]
) -> None:
    bare = next(s for s in samples if s.decision == "drop" and not s.audit)
    coco = exported(release, tmp_path, [samples[0].id])
    own = coco["curate"]["release"]
    content = rows_of(release)[bare.id]["content_sha256"].hex()
    coco["images"][0] |= {"file_name": f"{bare.id}_{content[:16]}_{own[:16]}.jpg", "sample_id": bare.id}
    coco["images"][0] |= {"content_sha256": content}
    with pytest.raises(LabelsError, match="has no pixels in this release"):
        import_labels(release, given(tmp_path, coco), at=AT)


@pytest.mark.parametrize(
    ("region", "what"),
    [
        ('<box label="person" xtl="1" ytl="1" xbr="5" ybr="5"/>', "a box says nothing of pixels"),
        ('<mask label="person" rle="5" left="0" top="0" width="2" height="2"/>', "adds up to 5"),
        ('<mask label="person" rle="0, -4" left="0" top="0" width="2" height="2"/>', "integers >= 0"),
        ('<mask label="person" rle="0, 4" left="119" top="0" width="2" height="2"/>', "must lie in the image"),
        ('<mask label="person" rle="0,10000000000" left="0" top="0" width="100000" height="100000"/>', "integers >= 0"),
        ('<mask label="person" left="0" top="0" width="2" height="2"/>', "integers >= 0"),
        ('<polygon label="person" points="1,2;3"/>', "points must be"),
        ('<polygon label="person" points="1,2;nan,4;5,6"/>', "numbers within"),
        ('<mask label="car" rle="0, 4" left="0" top="0" width="2" height="2"/>', "must be of the category"),
        ("", "has no person"),
    ],
)
def test_a_bad_region_of_cvat_is_refused(
    release: Path, tmp_path: Path, drawable: list[releases.Sample], region: str, what: str
) -> None:
    coco = exported(release, tmp_path, [drawable[0].id])
    text = cvat_xml(coco["images"][0]["file_name"], drawable[0].mask, region)
    with pytest.raises(LabelsError, match=what):
        import_labels(release, given(tmp_path, text, "a.xml"), at=AT)


def no_result(task: dict[str, Any]) -> None:
    task["annotations"][0]["result"] = [7]


def changed_region(**fields: Any) -> Change:
    def change(task: dict[str, Any]) -> None:
        task["annotations"][0]["result"][0].update(fields)

    return change


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda t: t.update(annotations=[]), "exactly one annotation"),
        (lambda t: t["annotations"].append(copy.deepcopy(t["annotations"][0])), "has 2"),
        (lambda t: t["annotations"][0].update(was_cancelled=True), "exactly one annotation"),
        (lambda t: t["annotations"][0].update(result=None), "result must be a list"),
        (no_result, "result must be a list"),
        (lambda t: t.update(data=[1]), "keep the names"),
        (changed_region(type="rectanglelabels"), "painted or a polygon"),
        (changed_region(image_rotation=90), "not be turned"),
        (changed_region(original_width=121), "must be 120x90, is 121x90"),
        (changed_region(original_width=[]), "must be integers"),
        (changed_region(value={"format": "png", "brushlabels": ["person"]}), "format must be 'rle'"),
        (changed_region(value={"format": "rle", "rle": [1, 2], "brushlabels": ["person"]}), "rle ends"),
        (changed_region(value={"format": "rle", "rle": [0] * 40, "brushlabels": ["person"]}), "must have 43200 values"),
        (changed_region(value={"format": "rle", "rle": [1], "brushlabels": ["person", "car"]}), "category"),
        (changed_region(type="polygonlabels", value={"points": [1, 2], "polygonlabels": ["person"]}), "in percent"),
    ],
)
def test_a_bad_task_of_label_studio_is_refused(
    release: Path, tmp_path: Path, drawable: list[releases.Sample], change: Change, what: str
) -> None:
    sample = drawable[0]
    coco = exported(release, tmp_path, [sample.id])
    task = studio_task(coco["images"][0]["file_name"], sample.mask, brush(square(sample.mask)))
    change(task)
    with pytest.raises(LabelsError, match=what):
        import_labels(release, given(tmp_path, [task]), at=AT)


def test_a_bad_mask_in_a_folder_is_refused(release: Path, tmp_path: Path, drawable: list[releases.Sample]) -> None:
    exported(release, tmp_path, [drawable[0].id])
    (path,) = (tmp_path / "out" / "masks").glob("*.png")
    soft = np.full((90, 120), 200, np.uint8)
    soft[0, 0] = 3
    turned = encode_mask(np.ones((120, 90), np.bool_))
    for data, what in (
        (b"", "0 bytes"),
        (path.read_bytes()[:60], "ends early|cannot be read"),
        (turned, "must be 120x90, is 90x120"),
        (cv2.imencode(".png", soft)[1].tobytes(), "without smoothing"),
    ):
        path.write_bytes(data)
        with pytest.raises(LabelsError, match=what):
            import_labels(release, tmp_path / "out", at=AT)


def test_hostile_run_lengths_never_crash_the_process(
    release: Path, tmp_path: Path, drawable: list[releases.Sample]
) -> None:
    coco = exported(release, tmp_path, [s.id for s in drawable[:9]])
    hostile: list[Any] = [
        {"size": [200_000, 200_000], "counts": [40_000_000_000]},
        {"size": [200_000, 200_000], "counts": "0" * 50},
        {"size": [90, 120], "counts": []},
        {"size": [90, 120], "counts": [10**30]},
        {"size": [90, 120], "counts": [-1, 10801]},
        {"size": [90, 120], "counts": "P" * 1000},
        {"size": [120, 90], "counts": [10800]},
        {"size": [90, 120], "counts": [5]},
        [[0, 0, 1e308, 0, 5, 5]],
    ]
    for entry, segmentation in zip(coco["annotations"], hostile, strict=True):
        entry["segmentation"] = segmentation
    file = given(tmp_path, coco)
    code = (
        "import resource, sys\nfrom datetime import UTC, datetime\nfrom pathlib import Path\n"
        "from pipeline.labels_coco import LabelsError, import_labels\n"
        "used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try:\n    import_labels(Path(sys.argv[1]), Path(sys.argv[2]), at=datetime.now(UTC))\n"
        "except LabelsError as error:\n"
        "    print(len(error.faults), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - used)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(release), str(file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    faults, grown = map(int, done.stdout.split())
    assert faults == len(hostile)
    assert grown < 200_000  # kilobytes


def test_an_unreadable_file_is_refused(release: Path, tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"PK\x03\x04")
    (tmp_path / "empty").mkdir()
    for source, what in (
        (tmp_path / "none.json", "cannot be read"),
        (tmp_path / "a.zip", "unpack it"),
        (tmp_path / "empty", "PNG masks"),
        (given(tmp_path, "{"), "no valid JSON"),
        (given(tmp_path, {"images": 1, "annotations": [], "categories": []}, "b.json"), "list of objects"),
        (given(tmp_path, {"images": [], "annotations": [], "categories": []}, "c.json"), "at least one image"),
    ):
        with pytest.raises(InputError, match=what):
            import_labels(release, source, at=AT)
    with pytest.raises(InputError, match=r"release\.json"):
        import_labels(tmp_path, given(tmp_path, "[]"), at=AT)


def test_real_photographs_come_back_corrected(data: Path, tmp_path: Path) -> None:
    samples = releases.photographs(data, 8)
    release = releases.write(tmp_path / "root", samples)
    sample = next(s for s in samples if s.decision == "keep")
    coco = exported(release, tmp_path, [sample.id])
    wanted = np.roll(sample.mask, 5, 0)
    coco["annotations"][0]["segmentation"]["counts"] = encode_runs(wanted)
    done: Imported = import_labels(release, given(tmp_path, coco), at=AT)
    assert verify_release(done.folder) == []
    assert np.array_equal(masks_of(done.folder)[sample.id], wanted)
