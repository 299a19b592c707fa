"""Laws of attributes: classes follow from known pictures; what the user gives is data, and unknown stays unknown."""

import csv
import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.attributes import COMPUTED, Given, computed_attributes, is_dead, read_given
from pipeline.errors import InputError, StorageError
from pipeline.motion import Grid
from tests.pipeline.media import texture

SOURCES = ["/data/a/one.mp4", "/data/a/two.mp4", "/data/b/two.mp4", "gs://bucket/three.mp4"]


def gray(value: int, height: int = 480, width: int = 640) -> NDArray[np.uint8]:
    return np.full((height, width, 3), value, np.uint8)


def checkers(side: int, height: int = 480, width: int = 640) -> NDArray[np.uint8]:
    rows, columns = np.arange(height)[:, None] // side, np.arange(width)[None, :] // side
    return np.repeat(((rows + columns) % 2 * 200 + 20).astype(np.uint8)[:, :, None], 3, axis=2)


# Computed -------------------------------------------------------------------------------------------------------------


def grid_of(speed: float) -> Grid:
    grid = np.zeros((16, 16, 2), np.float16)
    grid[..., 0] = speed
    return grid


@settings(max_examples=40)
@given(st.integers(0, 99), st.integers(32, 1500), st.integers(32, 1500), st.one_of(st.none(), st.floats(0, 1)))
def test_every_attribute_has_a_class_of_its_own(seed: int, height: int, width: int, motion: float | None) -> None:
    found = computed_attributes(texture(seed, height, width), motion, None if motion is None else grid_of(motion))
    assert sorted(found) == sorted(COMPUTED)
    unknown = {name for name, value in found.items() if value is None}
    assert unknown <= {"color_temperature"} | (set() if motion is not None else {"camera_motion", "frame_motion"})
    for name in set(found) - unknown:
        assert found[name] in COMPUTED[name]


@settings(max_examples=25)
@given(st.integers(0, 99), st.integers(1, 60), st.integers(1, 60))
def test_tiny_frames_and_noise_have_classes(seed: int, height: int, width: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
    found = computed_attributes(pixels, 0.1, grid_of(0.1))
    assert all(value in (*COMPUTED[name], None) for name, value in found.items())


@settings(max_examples=20)
@given(st.integers(0, 99), st.integers(60, 700), st.integers(60, 700))
def test_a_mirrored_picture_has_the_same_compression_noise(seed: int, height: int, width: int) -> None:
    pixels = texture(seed, height, width)
    both = [computed_attributes(p, None)["compression_noise"] for p in (pixels, pixels[:, ::-1].copy())]
    assert both[0] == both[1]


@pytest.mark.parametrize(
    ("value", "level"),
    [(0, "dim"), (69, "dim"), (70, "normal"), (159, "normal"), (160, "bright"), (255, "bright")],
)
def test_lighting_follows_the_median_luma(value: int, level: str) -> None:
    picture = gray(value)
    assert computed_attributes(picture, None)["lighting_level"] == level
    picture[:200] = 255 - value  # less than half
    assert computed_attributes(picture, None)["lighting_level"] == level


@pytest.mark.parametrize(
    ("height", "width", "aspect", "resolution"),
    [
        (1080, 1920, "landscape_16_9", "ge_1080p"),
        (360, 640, "landscape_16_9", "le_360p"),
        (240, 960, "landscape_16_9", "le_360p"),
        (480, 640, "landscape_4_3", "480_720p"),
        (720, 720, "square", "480_720p"),
        (1280, 720, "portrait", "480_720p"),
        (419, 450, "square", "le_360p"),
        (420, 560, "landscape_4_3", "480_720p"),
        (899, 1200, "landscape_4_3", "480_720p"),
        (900, 1200, "landscape_4_3", "ge_1080p"),
    ],
)
def test_shape_and_size_have_their_classes(height: int, width: int, aspect: str, resolution: str) -> None:
    found = computed_attributes(gray(100, height, width), None)
    assert (found["aspect_ratio"], found["resolution"]) == (aspect, resolution)


def test_an_aspect_belongs_to_the_nearest_on_a_ratio_scale() -> None:
    between = np.sqrt(16 / 9 * 4 / 3)
    for width in range(700, 1000):
        expected = "landscape_16_9" if width / 512 > between else "landscape_4_3"
        assert (
            computed_attributes(gray(9, 512, width), None)["aspect_ratio"] == expected
            or abs(width / 512 - between) < 2e-3
        )


@pytest.mark.parametrize(("side", "level"), [(1000, "plain"), (60, "moderate"), (20, "cluttered")])
def test_the_background_is_as_complex_as_it_has_edges(side: int, level: str) -> None:
    assert computed_attributes(checkers(side), None)["background_complexity"] == level


@pytest.mark.parametrize(
    ("speed", "level"), [(0.0, "static"), (0.007, "static"), (0.02, "handheld"), (0.09, "handheld"), (0.2, "moving")]
)
def test_what_the_whole_frame_does_is_the_cameras(speed: float, level: str) -> None:
    found = computed_attributes(texture(1), None, grid_of(speed))
    assert (found["camera_motion"], found["frame_motion"]) == (level, "still")


@pytest.mark.parametrize(
    ("speed", "level"), [(0.01, "still"), (0.04, "slow"), (0.15, "moderate"), (0.5, "fast"), (3.0, "fast")]
)
@pytest.mark.parametrize("pan", [0.0, 0.05])
def test_what_a_part_of_the_frame_does_is_its_own(speed: float, level: str, pan: float) -> None:
    grid = grid_of(pan)
    grid[6:15, 5:11, 1] = speed
    found = computed_attributes(texture(1), None, grid)
    assert (found["camera_motion"], found["frame_motion"]) == ("handheld" if pan else "static", level)


def test_a_still_tells_no_motion() -> None:
    found = computed_attributes(texture(1), None)
    assert found["camera_motion"] is found["frame_motion"] is None


@pytest.mark.parametrize(
    ("gains", "level"),
    [((1, 1, 1), "neutral"), ((1, 0.9, 0.78), "warm"), ((0.85, 0.94, 1), "cool"), ((0.2, 1, 0.2), None)],
)
def test_the_light_tints_gray_things(gains: tuple[float, float, float], level: str | None) -> None:
    found = computed_attributes((checkers(20) * np.array(gains)).astype(np.uint8), None)
    assert found["color_temperature"] == level


def test_blocks_and_noise_are_told_from_a_clean_picture() -> None:
    clean = texture(8, 400, 560)
    rng = np.random.default_rng(0)
    noisy = np.clip(clean + rng.normal(0, 6, clean.shape), 0, 255).astype(np.uint8)
    _, coded = cv2.imencode(".jpg", noisy, [cv2.IMWRITE_JPEG_QUALITY, 8])
    blocky = cv2.imdecode(coded, cv2.IMREAD_COLOR)
    assert blocky is not None
    found = [computed_attributes(p, None)["compression_noise"] for p in (clean, noisy, np.asarray(blocky, np.uint8))]
    assert found == ["clean", "noisy", "blocky"]
    shifted = np.ascontiguousarray(np.asarray(blocky, np.uint8)[3:, 5:])
    assert computed_attributes(shifted, None)["compression_noise"] == "blocky"


def test_sharpness_tells_focus_and_motion() -> None:
    sharp = checkers(16)
    blurred = np.asarray(cv2.GaussianBlur(sharp, (0, 0), 30), np.uint8)
    assert computed_attributes(sharp, 0.05)["sharpness"] == "sharp"
    assert computed_attributes(blurred, 0.05)["sharpness"] == "motion_blur"
    assert computed_attributes(blurred, 0.0)["sharpness"] == "defocus"
    assert computed_attributes(blurred, None)["sharpness"] == "defocus"


def test_a_frame_of_one_value_is_dead() -> None:
    assert is_dead(gray(0))
    assert is_dead(gray(200))
    assert not is_dead(texture(3))


# Given ----------------------------------------------------------------------------------------------------------------


def as_csv(path: Path, rows: list[dict[str, Any]], names: list[str], encoding: str = "utf-8") -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, names)
    writer.writeheader()
    writer.writerows(rows)
    path.write_bytes(text.getvalue().encode(encoding))
    return str(path)


def as_parquet(path: Path, rows: list[dict[str, Any]], names: list[str]) -> str:
    pq.write_table(pa.table({name: pa.array([row.get(name) for row in rows], pa.string()) for name in names}), path)
    return str(path)


@pytest.mark.parametrize("write", [as_csv, as_parquet])
def test_a_table_gives_each_source_its_values(tmp_path: Path, write: Any) -> None:
    rows = [
        {"source": "one.mp4", "skin_tone": " dark ", "age": ""},
        {"source": "b/two.mp4", "skin_tone": "light", "age": None},
        {"source": "gs://bucket/three.mp4", "skin_tone": "<script>\n=cmd()", "age": "40 人"},
        {"source": "elsewhere.mp4", "skin_tone": "light", "age": "1"},
    ]
    found = read_given(write(tmp_path / "given", rows, ["skin_tone", "source", "age"]), SOURCES)
    assert found.names == ("age", "skin_tone")
    assert found.of("/data/a/one.mp4") == (None, "dark")
    assert found.of("/data/b/two.mp4") == (None, "light")
    assert found.of("gs://bucket/three.mp4") == ("40 人", "<script>\n=cmd()")
    assert found.of("/data/a/two.mp4") == (None, None)


@pytest.mark.parametrize("key", ["/data/a/one.mp4", "data/a/one.mp4", "a/one.mp4", "./a/one.mp4", "one.mp4"])
def test_any_tail_of_a_path_names_a_source(tmp_path: Path, key: str) -> None:
    found = read_given(as_csv(tmp_path / "g.csv", [{"source": key, "x": "1"}], ["source", "x"]), SOURCES)
    assert found.of("/data/a/one.mp4") == ("1",)


def test_numbers_and_flags_become_words(tmp_path: Path) -> None:
    pq.write_table(pa.table({"source": ["one.mp4"], "age": [40], "glasses": [True], "score": [0.5]}), tmp_path / "g")
    assert read_given(str(tmp_path / "g"), SOURCES).of(SOURCES[0]) == ("40", "True", "0.5")


def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path: Path) -> None:
    uri = as_csv(tmp_path / "g.csv", [{"source": "one.mp4", "x": "1"}], ["source", "x"], "utf-8-sig")
    assert read_given(uri, SOURCES).of(SOURCES[0]) == ("1",)


@pytest.mark.parametrize("write", [as_csv, as_parquet])
def test_a_table_without_rows_tells_nothing(tmp_path: Path, write: Any) -> None:
    assert read_given(write(tmp_path / "g", [], ["source", "x"]), SOURCES) == Given(names=("x",), values={})


@pytest.mark.parametrize("write", [as_csv, as_parquet])
def test_the_same_said_twice_is_no_contradiction(tmp_path: Path, write: Any) -> None:
    rows = [{"source": "one.mp4", "x": "1"}, {"source": "a/one.mp4", "x": "1 "}]
    assert read_given(write(tmp_path / "g", rows, ["source", "x"]), SOURCES).of(SOURCES[0]) == ("1",)


@pytest.mark.parametrize("write", [as_csv, as_parquet])
@pytest.mark.parametrize(
    ("rows", "names", "message"),
    [
        (
            [{"source": "two.mp4", "x": "1"}],
            ["source", "x"],
            "row 1: source 'two.mp4' fits several inputs; write more of its path",
        ),
        (
            [{"source": "one.mp4", "x": "1"}, {"source": "a/one.mp4", "x": "2"}],
            ["source", "x"],
            "row 2: source 'a/one.mp4' is listed twice with different attributes",
        ),
        ([{"source": "ne.mp4", "x": "1"}], ["source", "x"], "names an input; the first is 'ne.mp4'"),
        ([{"file": "one.mp4", "x": "1"}], ["file", "x"], "needs a column 'source'; it has file, x"),
        ([{"source": "one.mp4", "a b": "1"}], ["source", "a b"], "attribute name 'a b' must be letters"),
        ([{"source": "one.mp4", "": "1"}], ["source", ""], "attribute name '' must be letters"),
        ([{"source": "one.mp4", "../x": "1"}], ["source", "../x"], "attribute name '../x' must be letters"),
        ([{"source": "one.mp4", "x" * 65: "1"}], ["source", "x" * 65], "at most 64"),
        ([{"source": "one.mp4"}], ["source", *(f"x{i}" for i in range(65))], "has 65 attributes; at most 64 are read"),
    ],
)
def test_a_table_that_cannot_be_meant_is_refused(
    tmp_path: Path, write: Any, rows: list[dict[str, Any]], names: list[str], message: str
) -> None:
    uri = write(tmp_path / "g", rows, names)
    with pytest.raises(InputError) as caught:
        read_given(uri, SOURCES)
    assert uri in str(caught.value)
    assert message in str(caught.value)


def test_a_column_that_stands_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "g.csv").write_text("source,x,x\none.mp4,1,2\n")
    pq.write_table(
        pa.table([pa.array(["one.mp4"])] + [pa.array(["1"])] * 2, names=["source", "x", "x"]), tmp_path / "g"
    )
    for name in ("g.csv", "g"):
        with pytest.raises(InputError, match="more than one column 'x'"):
            read_given(str(tmp_path / name), SOURCES)


def damaged_parquet() -> bytes:
    stream = io.BytesIO()
    table = pa.table({"source": ["one.mp4"] * 50, "x": [str(i) for i in range(50)]})
    pq.write_table(table, stream, write_page_checksum=True, compression="none")
    data = bytearray(stream.getvalue())
    data[data.index(b"one.mp4") + 2] ^= 1
    return bytes(data)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe\x00",
        "source,größe".encode("latin-1"),
        "source,x\none.mp4,1".encode("utf-16"),
        b"source,x\none.mp4,1,2\n",
        b'source,x\n"one.mp4,1\n',
        b"PAR1",
        b"PAR1" + bytes(100) + b"PAR1",
        damaged_parquet(),
        b"source,x\none.mp4," + b"9" * 10_000_000,
    ],
    ids=range(10),
)
def test_what_is_no_table_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "g").write_bytes(content)
    with pytest.raises(InputError, match=str(tmp_path / "g")) as caught:
        read_given(str(tmp_path / "g"), SOURCES)
    assert len(str(caught.value)) < 1000


def test_a_table_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot read .*absent\.csv: No such file"):
        read_given(str(tmp_path / "absent.csv"), SOURCES)


def test_a_huge_cell_is_cut(tmp_path: Path) -> None:
    uri = as_parquet(tmp_path / "g", [{"source": "one.mp4", "x": "é" * 10_000_000}], ["source", "x"])
    assert read_given(uri, SOURCES).of(SOURCES[0]) == ("é" * 256,)


def test_computed_names_are_those_of_the_words_we_use() -> None:
    assert all(name.isidentifier() and len(set(classes)) == len(classes) for name, classes in COMPUTED.items())
