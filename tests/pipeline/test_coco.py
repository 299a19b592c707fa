"""Laws of COCO masks: run lengths that add up, polygons by pixel centres, and clips as documented."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipeline.clips import ClipConfig, find_clips, read_clip
from pipeline.coco import CocoError, decode_runs, decode_segmentation, decompress, draw, fill_polygons, read_coco
from tests.pipeline.clip_sets import assert_holds, coco_of, drawn, png, put, refusal, runs_of, write_coco

FRAMES = drawn()
MASKS = arrays(np.bool_, st.tuples(st.integers(1, 9), st.integers(1, 9)))


def compress(runs: list[int]) -> str:
    """Compressed counts, written by the format's rule: 5 bits a character, low end first, differences from the 4th."""
    text = ""
    for index, run in enumerate(runs):
        value = run - runs[index - 2] if index > 2 else run
        while True:
            group, value = value & 31, value >> 5
            done = value == (-1 if group & 16 else 0)
            text += chr(48 + (group if done else group | 32))
            if done:
                break
    return text


# Run lengths ----------------------------------------------------------------------------------------------------------


@given(MASKS)
def test_runs_decode_to_the_mask_that_they_count(mask: np.ndarray) -> None:
    height, width = mask.shape
    np.testing.assert_array_equal(decode_runs(runs_of(mask), height, width), mask)


@given(MASKS)
def test_compressed_counts_are_the_same_mask(mask: np.ndarray) -> None:
    height, width = mask.shape
    value = {"size": [height, width], "counts": compress(runs_of(mask))}
    np.testing.assert_array_equal(decode_segmentation(value, height, width), mask)


@given(st.lists(st.integers(0, 1 << 40), max_size=12))
def test_compressed_counts_are_the_numbers(runs: list[int]) -> None:
    assert decompress(compress(runs)) == runs


def test_compressed_counts_of_the_coco_api_are_read() -> None:
    # By hand: rows 1, 2 and columns 1..3 of a 4 x 5 image are runs 5 2 2 2 2 2 5, so 5 2 2 and differences 0 0 0 3.
    expected = np.zeros((4, 5), np.bool_)
    expected[1:3, 1:4] = True
    assert decompress("5220003") == [5, 2, 2, 2, 2, 2, 5]
    np.testing.assert_array_equal(decode_segmentation({"size": [4, 5], "counts": "5220003"}, 4, 5), expected)


@given(st.lists(st.integers(-3, 30), max_size=8), st.integers(1, 6), st.integers(1, 6))
def test_runs_that_do_not_add_up_are_refused(runs: list[int], height: int, width: int) -> None:
    if min(runs, default=0) >= 0 and sum(runs) == height * width:
        assert decode_runs(runs, height, width).shape == (height, width)
        return
    with pytest.raises(CocoError, match="counts must"):
        decode_runs(runs, height, width)


@given(st.text(max_size=12))
def test_any_text_gives_counts_or_an_error(text: str) -> None:
    try:
        numbers = decompress(text)
    except CocoError:
        return
    assert decompress(compress(numbers)) == numbers


@pytest.mark.parametrize(
    "value",
    [
        None,
        "52",
        3,
        {},
        {"size": [4, 5]},
        {"size": [5, 4], "counts": [20]},
        {"size": [4, 5], "counts": [20], "x": 1},
        {"size": [4, 5], "counts": [10.0, 10]},
        {"size": [4, 5], "counts": [True, 19]},
        {"size": [4, 5], "counts": [10**30]},
        {"size": [4, 5], "counts": None},
        {"size": [4, 5], "counts": "o"},
        {"size": [4, 5], "counts": "o" * 13 + "0"},
        {"size": [4, 5], "counts": "/"},
        [[0, 0, 1, 1]],
        [[0, 0, 1, 1, 2, 2, 3]],
        [[0, 0, 1, 1, 2, float("nan")]],
        [[0, 0, 1, 1, 2, 1e9]],
        [[0, 0, 1, 1, 2, "3"]],
        [5],
    ],
)
def test_malformed_segmentations_are_refused(value: Any) -> None:
    with pytest.raises(CocoError):
        decode_segmentation(value, 4, 5)


def test_an_image_beyond_the_limit_takes_no_memory() -> None:
    with pytest.raises(CocoError, match="must have 1"):
        decode_runs([0, 200_000 * 200_000], 200_000, 200_000)


# Polygons -------------------------------------------------------------------------------------------------------------


def winding_oracle(corners: np.ndarray, height: int, width: int) -> np.ndarray:
    """Even-odd rule, one pixel centre at a time."""
    mask = np.zeros((height, width), np.bool_)
    for row in range(height):
        for column in range(width):
            x, y = column + 0.5, row + 0.5
            for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
                if (y0 <= y) != (y1 <= y) and x0 + (y - y0) * ((x1 - x0) / (y1 - y0)) <= x:
                    mask[row, column] ^= True
    return mask


COORDINATES = st.integers(-12, 40).map(lambda n: n / 3)


@given(st.lists(st.tuples(COORDINATES, COORDINATES), min_size=3, max_size=7))
def test_a_pixel_is_inside_if_its_centre_is(corners: list[tuple[float, float]]) -> None:
    found = fill_polygons([[v for corner in corners for v in corner]], 8, 11)
    np.testing.assert_array_equal(found, winding_oracle(np.array(corners), 8, 11))


@given(st.integers(0, 8), st.integers(0, 8), st.integers(0, 8), st.integers(0, 8))
def test_a_box_covers_its_pixels(top: int, left: int, height: int, width: int) -> None:
    x0, y0, x1, y1 = left, top, left + width, top + height
    expected = np.zeros((12, 12), np.bool_)
    expected[y0:y1, x0:x1] = True
    np.testing.assert_array_equal(fill_polygons([[x0, y0, x1, y0, x1, y1, x0, y1]], 12, 12), expected)


def test_polygons_that_share_an_edge_share_no_pixel_and_leave_none_out() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        x, y = rng.uniform(0, 20, 2)
        whole = np.zeros((20, 20), np.int64)
        corners = [(0, 0), (20, 0), (20, 20), (0, 20)]
        for (x0, y0), (x1, y1) in zip(corners, [*corners[1:], corners[0]], strict=True):
            whole += fill_polygons([[x0, y0, x1, y1, float(x), float(y)]], 20, 20)
        assert (whole == 1).all()


def test_persons_are_united_and_crowds_are_void_where_no_person_is() -> None:
    value = coco_of("walk", FRAMES)
    box = {"id": 90, "image_id": 0, "category_id": 1, "iscrowd": 0, "segmentation": [[0, 0, 9, 0, 9, 9, 0, 9]]}
    crowd = {**box, "id": 91, "iscrowd": 1, "segmentation": {"size": [48, 64], "counts": [0, 48 * 64]}}
    value["annotations"] += [box, crowd]
    person, void = draw(read_coco(value, "person").regions[0], 48, 64)
    expected = FRAMES[0].mask.copy()
    expected[:9, :9] = True
    np.testing.assert_array_equal(person, expected)
    np.testing.assert_array_equal(void, ~expected)


# Files ----------------------------------------------------------------------------------------------------------------


def edited(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = write_coco(folder, "walk", FRAMES)
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


@pytest.mark.parametrize("place", ["images", "JPEGImages", "."])
@pytest.mark.parametrize("file", ["people.json", "annotations/people.json"])
def test_images_are_found_in_the_usual_places(place: str, file: str, tmp_path: Path) -> None:
    for number, frame in enumerate(FRAMES):
        put(tmp_path / place / "walk" / f"{number:05d}.jpg", frame.jpeg)
    put(tmp_path / file, json.dumps(coco_of("walk", FRAMES)).encode())
    (clip,) = find_clips(tmp_path)
    assert clip.name == "walk"
    assert_holds(clip, FRAMES)


def test_videos_and_frames_by_number_come_in_their_order(tmp_path: Path) -> None:
    def change(value: dict[str, Any]) -> None:
        value["videos"] = [{"id": 7, "name": "stroll"}]
        for index, image in enumerate(value["images"]):
            image |= {"video_id": 7, "frame_id": 10 * (4 - index)}

    edited(tmp_path, change)
    (clip,) = find_clips(tmp_path)
    assert clip.name == "stroll"
    assert_holds(clip, FRAMES[::-1])


def test_a_file_may_hold_several_videos(tmp_path: Path) -> None:
    def change(value: dict[str, Any]) -> None:
        for index, image in enumerate(value["images"]):
            image |= {"video_id": index % 2, "frame_id": index}

    edited(tmp_path, change)
    one, two = find_clips(tmp_path)
    assert (one.name, two.name) == ("0", "1")
    assert_holds(one, FRAMES[::2])
    assert_holds(two, FRAMES[1::2])


def test_an_image_without_annotations_has_an_empty_truth(tmp_path: Path) -> None:
    edited(tmp_path, lambda value: value["annotations"].clear())
    (clip,) = find_clips(tmp_path)
    for frame in read_clip(clip):
        assert frame.truth is not None
        assert not frame.truth.any()


def test_another_category_may_be_chosen(tmp_path: Path) -> None:
    write_coco(tmp_path, "walk", FRAMES)
    config = ClipConfig(category="dog")
    (clip,) = find_clips(tmp_path, config)
    assert all(frame.truth is not None and frame.truth.all() for frame in read_clip(clip, config))


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no person": (lambda v: v["categories"].pop(), "must have 'person'"),
    "an image twice": (lambda v: v["images"].append(v["images"][0]), "must be distinct"),
    "a missing image": (
        lambda v: v["images"].append({**v["images"][0], "id": 9, "file_name": "walk/9.jpg"}),
        "walk/9.jpg",
    ),
    "a missing folder": (
        lambda v: [i.update(file_name=f"no/{i['id']}.jpg") for i in v["images"]],
        "must lie in one of",
    ),
    "a way out": (lambda v: v["images"][0].update(file_name="../walk/0.jpg"), "below the images' folder"),
    "an absolute path": (lambda v: v["images"][0].update(file_name="/walk/0.jpg"), "below the images' folder"),
    "no video": (lambda v: v["images"][0].update(file_name="0.jpg"), "must be video/frame"),
    "an unknown video": (
        lambda v: (v.update(videos=[]), v["images"][0].update(video_id=1, frame_id=1)),
        "must be in 'videos'",
    ),
    "another size": (lambda v: v["images"][0].update(height=47, width=64), "says 64x47"),
    "an unknown image": (lambda v: v["annotations"][0].update(image_id=77), "must name an image"),
    "a strange crowd": (lambda v: v["annotations"][0].update(iscrowd=2), "iscrowd must be 0 or 1"),
    "wrong counts": (
        lambda v: v["annotations"][0]["segmentation"].update(counts=[1]),
        "annotation 0: counts must add up",
    ),
    "no segmentation": (lambda v: v["annotations"][0].pop("segmentation"), "annotation 0: a segmentation must be"),
    "no images": (lambda v: (v["images"].clear(), v["annotations"].clear()), "at least one image"),
    "images that are no list": (lambda v: v.update(images={}), "'images' must be a list"),
    "a text for an id": (lambda v: v["images"][0].update(id="0"), "id must be an integer"),
    "no height": (lambda v: v["images"][0].pop("height"), "height must be an integer"),
    "no size": (lambda v: v["images"][0].update(height=0), "must be >= 1"),
    "a name that leads away": (
        lambda v: (
            v.update(videos=[{"id": 1, "name": "../../x"}]),
            [i.update(video_id=1, frame_id=i["id"]) for i in v["images"]],
        ),
        "got '../../x'",
    ),
    "a name of control characters": (
        lambda v: (
            v.update(videos=[{"id": 1, "name": "x\n"}]),
            [i.update(video_id=1, frame_id=i["id"]) for i in v["images"]],
        ),
        "must be a relative path of printable letters",
    ),
    "YouTube-VIS": (lambda v: (v.pop("images"), v.update(videos=[])), "YouTube-VIS"),
    "frames of one number": (lambda v: [i.update(video_id=1, frame_id=1) for i in v["images"]], "must occur once"),
    "an image left out": (
        lambda v: (v["images"].pop(), v["annotations"].__delitem__(slice(6, 8))),
        "belongs to no clip",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_files_that_break_a_rule_are_refused_by_name(name: str, tmp_path: Path) -> None:
    change, message = CHANGES[name]
    edited(tmp_path, change)
    found = refusal(tmp_path)
    assert message in found
    assert str(tmp_path) in found


def test_json_that_is_broken_is_refused_and_other_json_is_not_looked_at(tmp_path: Path) -> None:
    path = write_coco(tmp_path, "walk", FRAMES)
    put(tmp_path / "notes.json", b'{"images": 3}')
    assert len(find_clips(tmp_path)) == 1
    for broken in (path.read_bytes()[:-1], b"[" * 100_000, b"\xff\xfe{"):
        put(tmp_path / "broken.json", broken)
        assert "broken.json: it is no valid JSON" in refusal(tmp_path)


def test_an_image_of_another_size_than_stated_is_refused_before_it_is_drawn(tmp_path: Path) -> None:
    write_coco(tmp_path, "walk", FRAMES)
    put(tmp_path / "images/walk/00001.jpg", png(np.zeros((64, 48))))
    assert "00001.jpg is 48x64" in refusal(tmp_path)


@given(st.data())
def test_any_one_value_replaced_gives_a_data_set_or_a_named_error(data: st.DataObject) -> None:
    value = copy.deepcopy(coco_of("walk", FRAMES[:1]))
    part = data.draw(st.sampled_from(["images", "annotations", "categories"]))
    entry = data.draw(st.sampled_from(value[part]))
    junk = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.lists(st.integers())
    entry[data.draw(st.sampled_from(sorted(entry)))] = data.draw(junk)
    try:
        coco = read_coco(value, "person")
        masks = draw(coco.regions.get(0, ()), 48, 64)
    except CocoError:
        return
    assert all(mask.shape == (48, 64) and mask.dtype == np.bool_ for mask in masks)
