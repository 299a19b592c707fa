"""Laws of masks from annotation tools: persons are united, every pixel is meant, and it is all of a file or nothing."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from manifests.audit import AUDIT_FILE, Audit, Drawn, Stratum, load_mask, read_audit, render_audit
from manifests.mask import decode_mask, encode_mask
from pipeline.audit_coco import Imported, check_audit, import_coco, masks_of_coco
from pipeline.audit_draw import coco_of
from pipeline.coco import CocoError, fill_polygons
from pipeline.errors import InputError, StorageError
from tests.pipeline.clip_sets import runs_of

HEIGHT, WIDTH = 36, 40
BOX = [4, 4, 20, 4, 20, 30, 4, 30]
OTHER = [22, 6, 38, 6, 30, 33]


def drawn(number: int) -> Drawn:
    return Drawn(
        name=f"{number:04}", sample_id=f"{number:032x}", content_sha256=f"{number:064x}", width=WIDTH, height=HEIGHT
    )


AUDIT = Audit(
    seed=0,
    size=4,
    origin="stage",
    fingerprint="b" * 64,
    samples=tuple(drawn(number) for number in range(1, 5)),
    strata={"0": Stratum(population=8, drawn=4)},
)
FRAMES = {sample.name: sample for sample in AUDIT.samples}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "audit").mkdir()
    (tmp_path / "audit" / AUDIT_FILE).write_bytes(render_audit(AUDIT))
    return tmp_path / "audit"


def person(number: int, image: int, segmentation: Any, **facts: Any) -> dict[str, Any]:
    return {"id": number, "image_id": image, "category_id": 1, "segmentation": segmentation, "iscrowd": 0, **facts}


def annotated() -> dict[str, Any]:
    """Two polygons, a painted region, nobody; the fourth image is not in the file. As tools hand it back."""
    value: dict[str, Any] = json.loads(coco_of(AUDIT))
    value["images"].pop()
    value["images"][1]["file_name"] = "images/default/0002.jpg"
    painted = {"size": [HEIGHT, WIDTH], "counts": runs_of(fill_polygons([BOX], HEIGHT, WIDTH))}
    value["annotations"] = [
        person(1, 1, [BOX]),
        person(2, 1, [OTHER]),
        person(3, 2, painted, iscrowd=1),
    ]
    return value


def put(folder: Path, value: Any) -> Path:
    path = folder.parent / "annotations.json"
    path.write_text(json.dumps(value))
    return path


def masks(folder: Path) -> dict[str, NDArray[np.bool_]]:
    return {one.drawn.name: load_mask(one)[0] for one in read_audit(folder)[0]}


def test_persons_are_united_and_a_listed_image_without_any_shows_nobody(folder: Path) -> None:
    assert import_coco(folder, put(folder, annotated()), empty=True) == Imported(frames=3, empty=1)
    found = masks(folder)
    assert sorted(found) == ["0001", "0002", "0003"]
    np.testing.assert_array_equal(found["0001"], fill_polygons([BOX, OTHER], HEIGHT, WIDTH))
    np.testing.assert_array_equal(found["0002"], fill_polygons([BOX], HEIGHT, WIDTH))
    assert not found["0003"].any()
    progress = check_audit(folder)
    assert (progress.done, progress.unfinished) == (3, 1)
    assert not (folder / "ignore").exists()


def test_what_is_drawn_as_ignore_does_not_count(folder: Path) -> None:
    value = annotated()
    value["categories"].append({"id": 7, "name": "ignore"})
    value["annotations"].append(person(4, 2, [OTHER], category_id=7))
    import_coco(folder, put(folder, value), empty=True)
    for one in read_audit(folder)[0]:
        mask, ignore = load_mask(one)
        assert (one.ignore is not None) == (one.drawn.name == "0002")
        if one.ignore:
            np.testing.assert_array_equal(mask, fill_polygons([BOX], HEIGHT, WIDTH))
            np.testing.assert_array_equal(ignore, fill_polygons([OTHER], HEIGHT, WIDTH))


@given(st.lists(st.integers(0, 2**20 - 1).map(lambda bits: bits | 1), min_size=1, max_size=4))
def test_a_painted_mask_comes_back_pixel_for_pixel(painted: list[int]) -> None:
    planes = [np.array([bits >> i & 1 for i in range(20)], np.bool_).reshape(4, 5) for bits in painted]
    sample = Drawn(name="0001", sample_id="0" * 32, content_sha256="0" * 64, width=5, height=4)
    value = {
        "images": [{"id": 9, "file_name": "0001.jpg", "width": 5, "height": 4}],
        "annotations": [person(i, 9, {"size": [4, 5], "counts": runs_of(p)}) for i, p in enumerate(planes)],
        "categories": [{"id": 1, "name": "person"}],
    }
    made = masks_of_coco(value, {"0001": sample})["0001"]
    assert (made.ignore, made.annotated) == (None, True)
    np.testing.assert_array_equal(decode_mask(made.mask, 20), np.logical_or.reduce(planes))


def change(*path: str | int, to: Any) -> Callable[[dict[str, Any]], None]:
    def apply(value: dict[str, Any]) -> None:
        place: Any = value
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = to

    return apply


BAD: list[tuple[Callable[[dict[str, Any]], None], str]] = [
    (change("images", 0, "file_name", to="0009.jpg"), "image '0009.jpg' is no frame of this audit"),
    (change("images", 0, "file_name", to="0004.jpg.jpg"), "is no frame of this audit"),
    (change("images", 0, "file_name", to="x/0002.jpg"), "image 'images/default/0002.jpg' is there twice"),
    (change("images", 0, "file_name", to="../0001.jpg"), "file_name must be a path below"),
    (change("images", 0, "file_name", to="/0001.jpg"), "file_name must be a path below"),
    (change("images", 0, "file_name", to=7), "file_name must be a path below"),
    (change("images", 0, "id", to=2), "ids and names of images must be distinct"),
    (change("images", 0, "width", to=WIDTH + 1), "image '0001.jpg' must be 40x36, is 41x36"),
    (change("images", 0, "height", to=1 << 40), "must be 40x36, is 40x1099511627776"),
    (change("images", 0, to="0001.jpg"), "'images' must be a list of objects"),
    (change("images", to=[]), "must name an image of the file"),
    (change("images", to={}), "'images' must be a list of objects"),
    (change("annotations", to=[]), "no annotation at all"),
    (change("annotations", to={"a": 1}), "'annotations' must be a list of objects"),
    (change("categories", to=[{"id": 1, "name": "people"}]), r"categories must have 'person'"),
    (change("categories", to=None), "'categories' must be a list"),
    (change("annotations", 0, "category_id", to=2), "annotation 1 must be of the category 'person'"),
    (change("annotations", 0, "image_id", to=4), "annotation 1 must name an image of the file, names 4"),
    (change("annotations", 0, "iscrowd", to="no"), "iscrowd must be 0 or 1"),
    (change("annotations", 0, "segmentation", to=[]), "annotation 1 covers no pixel; a box is no mask"),
    (change("annotations", 0, "segmentation", to=[[50, 50, 60, 50, 60, 60]]), "annotation 1 covers no pixel"),
    (change("annotations", 0, "segmentation", to=[[1, 2, 3, 4]]), "annotation 1: a polygon must be"),
    (change("annotations", 0, "segmentation", to=[[1, 2, 3, 4, 5, float("nan")]]), "annotation 1: a polygon's"),
    (change("annotations", 0, "segmentation", to=None), "annotation 1: a segmentation must be polygons"),
    (change("annotations", 2, "segmentation", "counts", to=[5, 6]), "annotation 3: counts must add up to 1440"),
    (change("annotations", 2, "segmentation", "counts", to=[-1, 1441]), "annotation 3: counts must be integers >= 0"),
    (change("annotations", 2, "segmentation", "counts", to="~"), "annotation 3: compressed counts hold"),
    (change("annotations", 2, "segmentation", "counts", to="P" * 99), "annotation 3: "),
    (change("annotations", 2, "segmentation", "size", to=[WIDTH, HEIGHT]), r"annotation 3: size must be"),
]


@pytest.mark.parametrize(("change_", "message"), BAD, ids=[message[:40] for _, message in BAD])
def test_one_fault_anywhere_imports_nothing(
    folder: Path, change_: Callable[[dict[str, Any]], None], message: str
) -> None:
    value = copy.deepcopy(annotated())
    change_(value)
    with pytest.raises(InputError, match=r"annotations\.json: .*nothing was imported") as caught:
        import_coco(folder, put(folder, value))
    assert message in str(caught.value)
    assert [path.name for path in folder.iterdir()] == [AUDIT_FILE]


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"7", b"{}", b"[" * 100_000, b"\x00\xff"])
def test_what_is_no_coco_file_imports_nothing(folder: Path, data: bytes) -> None:
    path = folder.parent / "x.json"
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"x\.json: .*nothing was imported"):
        import_coco(folder, path)
    with pytest.raises(StorageError, match="absent"):
        import_coco(folder, folder / "absent")
    with pytest.raises(InputError, match="no audit is here"):
        import_coco(folder.parent, path)


def test_all_faults_are_counted_and_ten_are_named() -> None:
    value = annotated()
    value["images"] += [{"id": n, "file_name": f"{n}.jpg", "width": 9, "height": 9} for n in range(100, 113)]
    with pytest.raises(CocoError, match=r"; and 3 more$") as caught:
        masks_of_coco(value, FRAMES)
    assert str(caught.value).count("is no frame of this audit") == 10


def test_the_file_as_it_was_exported_is_not_taken_for_empty_images(folder: Path) -> None:
    path = folder.parent / "annotations.json"
    path.write_bytes(coco_of(AUDIT))
    with pytest.raises(InputError, match="no annotation at all; export it from the tool when the persons are drawn"):
        import_coco(folder, path)


def test_masks_that_are_there_stay_and_a_file_may_come_again(folder: Path) -> None:
    path = put(folder, annotated())
    import_coco(folder, path, empty=True)
    before = {p: p.read_bytes() for p in folder.rglob("*.png")}
    (folder / "masks" / "0002.png").unlink()  # killed while it wrote
    assert import_coco(folder, path, empty=True).frames == 3
    assert {p: p.read_bytes() for p in folder.rglob("*.png")} == before
    value = annotated()
    value["images"].append({"id": 4, "file_name": "0004.jpg", "width": WIDTH, "height": HEIGHT})
    value["annotations"][0]["segmentation"] = [OTHER]
    value["annotations"].append(person(8, 4, [BOX]))
    with pytest.raises(InputError, match=r"masks/0001\.png hold other masks already; remove those"):
        import_coco(folder, put(folder, value), empty=True)
    assert {p: p.read_bytes() for p in folder.rglob("*.png")} == before
    (folder / "masks" / "0001.png").unlink()
    assert import_coco(folder, put(folder, value), empty=True).frames == 4
    assert check_audit(folder).unfinished == 0


def test_a_folder_with_a_fault_takes_no_masks(folder: Path) -> None:
    (folder / "masks").mkdir()
    (folder / "masks" / "0004.png").write_bytes(b"junk")
    path = put(folder, annotated())
    for action in (lambda: check_audit(folder), lambda: import_coco(folder, path)):
        with pytest.raises(InputError, match=r"0004\.png"):
            action()
    assert [p.name for p in (folder / "masks").iterdir()] == ["0004.png"]


def test_an_image_that_nobody_annotated_is_not_taken_for_one_that_shows_nobody(folder: Path) -> None:
    value = annotated()
    value["images"].append({"id": 4, "file_name": "0004.jpg", "width": WIDTH, "height": HEIGHT})
    path = put(folder, value)
    with pytest.raises(InputError, match=r"2 of 4 images have no annotation: 0003, 0004; .*add --empty;.*nothing was"):
        import_coco(folder, path)
    assert [p.name for p in folder.iterdir()] == [AUDIT_FILE]
    value["categories"].append({"id": 7, "name": "ignore"})
    value["annotations"] += [person(4, 3, [BOX], category_id=7), person(5, 4, [BOX])]
    assert import_coco(folder, put(folder, value)) == Imported(frames=4, empty=0)


def test_pixels_to_ignore_that_the_file_does_not_have_refuse_it(folder: Path) -> None:
    value = annotated()
    value["images"].pop()
    (folder / "masks").mkdir()
    (folder / "ignore").mkdir()
    path, void = put(folder, value), encode_mask(fill_polygons([OTHER], HEIGHT, WIDTH))
    (folder / "masks" / "0002.png").write_bytes(encode_mask(fill_polygons([BOX], HEIGHT, WIDTH)))
    (folder / "ignore" / "0002.png").write_bytes(void)
    with pytest.raises(InputError, match=r"ignore/0002\.png hold other masks already; remove those"):
        import_coco(folder, path)
    assert not (folder / "masks" / "0001.png").exists()
    (folder / "ignore" / "0002.png").unlink()
    assert import_coco(folder, path) == Imported(frames=2, empty=0)
