"""Pictures for the screens: as large as asked, aligned with their masks, never a shard's own bytes, never damaged."""

import dataclasses
import io
import threading
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from manifests.mask import encode_mask
from manifests.shard import ShardError
from review.catalog import Catalog
from review.pixels import KINDS, SIDES, Pixels, PixelsError, shown_size
from tests.review import releases


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[releases.Sample]]:
    samples = releases.figures(40)
    return releases.write(tmp_path_factory.mktemp("pixels"), samples), samples


@pytest.fixture(scope="module")
def catalog(drawn: tuple[Path, list[releases.Sample]]) -> Catalog:
    return Catalog.open(drawn[0])


def with_pixels(samples: list[releases.Sample]) -> list[releases.Sample]:
    return [sample for sample in samples if sample.decision != "drop" or sample.audit]


def image_of(data: bytes) -> Any:
    return cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def mask_of(data: bytes) -> Any:
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)


def one_release(tmp_path: Path, sample: releases.Sample, **columns: Any) -> tuple[Pixels, Any]:
    """A release of one sample whose row of the shard holds other bytes than the house would write."""
    original = releases.shard_row

    def hostile(one: releases.Sample) -> Any:
        return dataclasses.replace(original(one), **columns)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(releases, "shard_row", hostile)
        catalog = Catalog.open(releases.write(tmp_path, [sample]))
    place = catalog.place(sample.id)
    assert place is not None
    return Pixels(catalog), place


@pytest.mark.parametrize("side", [32, 50, 64, 100, 120, 2048])
def test_every_sample_is_shown_in_its_size_and_its_mask_in_the_same(
    drawn: tuple[Path, list[releases.Sample]], catalog: Catalog, side: int
) -> None:
    pixels = Pixels(catalog)
    for sample in with_pixels(drawn[1]):
        place = catalog.place(sample.id)
        assert place is not None
        image, mask = image_of(pixels.thumb(place, side)), mask_of(pixels.mask(place, "mask", side))
        width, height = shown_size(120, 90, side)
        assert max(width, height) == min(side, 120)
        assert image.shape == (height, width, 3)
        assert mask.shape == (height, width)
        assert mask.dtype == np.uint8
        assert set(np.unique(mask)) <= {0, 255}
        size = (width, height)
        expected = cv2.resize(sample.image, size, interpolation=cv2.INTER_AREA).astype(int)
        assert np.abs(image.astype(int) - expected).mean() < 8  # noise, JPEG twice and its coarser colours
        part = cv2.resize(sample.mask.astype(np.float32), size, interpolation=cv2.INTER_AREA)
        assert ((mask > 0) == (part >= 0.5))[np.abs(part - 0.5) > 0.01].all()


def test_at_full_size_the_mask_is_the_mask_and_the_teacher_s_is_the_teacher_s(
    drawn: tuple[Path, list[releases.Sample]], catalog: Catalog
) -> None:
    pixels = Pixels(catalog)
    corrected = 0
    for sample in with_pixels(drawn[1]):
        place = catalog.place(sample.id)
        assert place is not None
        assert np.array_equal(mask_of(pixels.mask(place, "mask", 2048)) > 0, sample.mask)
        if sample.teacher_mask is not None:
            corrected += 1
            assert np.array_equal(mask_of(pixels.mask(place, "teacher", 2048)) > 0, sample.teacher_mask)
        else:
            with pytest.raises(PixelsError, match="no teacher_mask"):
                pixels.mask(place, "teacher", 256)
        with pytest.raises(PixelsError, match="no ignore"):
            pixels.mask(place, "ignore", 256)
    assert corrected >= 3


def test_the_ignore_mask_is_shown_where_there_is_one(tmp_path: Path) -> None:
    ignore = np.zeros((90, 120), np.bool_)
    ignore[:10, 5:50] = True
    pixels, place = one_release(tmp_path, releases.figures(1)[0], ignore_png=encode_mask(ignore))
    assert np.array_equal(mask_of(pixels.mask(place, "ignore", 120)) > 0, ignore)


def test_no_byte_of_the_original_is_sent_not_even_its_metadata(tmp_path: Path) -> None:
    sample = releases.figures(1)[0]
    sink = io.BytesIO()
    exif = Image.Exif()
    exif[0x010E], exif[0x0112] = "somebody's name", 6  # and an orientation, which an upright shard image has not
    Image.fromarray(sample.image).save(sink, "JPEG", quality=95, exif=exif, comment=b"secret")
    pixels, place = one_release(tmp_path, sample, image_jpeg=sink.getvalue())
    sent = pixels.thumb(place, 2048)
    assert sent != sink.getvalue()
    assert b"somebody" not in sent
    assert b"secret" not in sent
    assert image_of(sent).shape == (90, 120, 3)  # upright as its mask, whatever the orientation says
    assert np.abs(image_of(sent).astype(int) - sample.image).mean() < 8


@pytest.mark.parametrize("side", [SIDES[0] - 1, SIDES[1] + 1, 0, -5])
def test_a_side_outside_the_limits_is_refused(catalog: Catalog, side: int) -> None:
    place = catalog.place(with_pixels(releases.figures(1))[0].id)
    assert place is not None
    for make in (lambda: Pixels(catalog).thumb(place, side), lambda: Pixels(catalog).mask(place, "mask", side)):
        with pytest.raises(PixelsError, match="side must be within"):
            make()


def test_the_shorter_side_never_vanishes() -> None:
    assert shown_size(5000, 3, 32) == (32, 1)
    assert shown_size(3, 5000, 32) == (1, 32)
    assert shown_size(7, 5, 2048) == (7, 5)


def test_a_row_of_another_sample_is_refused_by_name(catalog: Catalog) -> None:
    places = [p for s in with_pixels(releases.figures(40)) if (p := catalog.place(s.id)) and p.folder == "train"]
    wrong = dataclasses.replace(places[0], sample_id=places[1].sample_id)
    with pytest.raises(ShardError, match=rf"row group \d+: row \d+ must be sample {wrong.sample_id}, is another"):
        Pixels(catalog).thumb(wrong, 64)


def test_a_row_beyond_the_shard_is_refused(catalog: Catalog) -> None:
    place = catalog.place(with_pixels(releases.figures(1))[0].id)
    assert place is not None
    with pytest.raises(ShardError, match="has no row 999"):
        Pixels(catalog).thumb(dataclasses.replace(place, row=999), 64)


@pytest.mark.parametrize(
    ("column", "data", "told"),
    [
        ("image_jpeg", b"", "0 bytes"),
        ("image_jpeg", b"<html><script>alert(1)</script></html>", "must be JPEG"),
        ("image_jpeg", "another size", "the manifest says 120x90"),
        ("image_jpeg", "truncated", "ends early|cannot be read"),
        ("image_jpeg", "bomb", "at most 67108864 pixels"),
        ("image_jpeg", "scans", "at most 100 scans"),
        ("image_jpeg", "png", "the picture cannot be read"),
        ("mask_png", b"no png", "must be a PNG"),
        ("mask_png", "mask of another size", "the manifest says 120x90"),
        ("mask_png", "mask bomb", "over the limit"),
    ],
)
def test_bytes_that_are_no_such_picture_are_an_error_that_names_shard_row_group_and_sample(
    tmp_path: Path, column: str, data: str | bytes, told: str
) -> None:
    sample = releases.figures(1)[0]
    jpeg = bytes(cv2.imencode(".jpg", sample.image)[1])
    start = jpeg.index(b"\xff\xc0")
    made = {
        "another size": bytes(cv2.imencode(".jpg", sample.image[:40])[1]),
        "truncated": jpeg[: len(jpeg) // 2],
        "bomb": jpeg[: start + 5] + b"\xff\xff\xff\xff" + jpeg[start + 9 :],
        "scans": jpeg + b"\xff\xda" * 101,
        "png": bytes(cv2.imencode(".png", sample.image)[1]),
        "mask of another size": encode_mask(sample.mask[:50]),
        "mask bomb": _png_of(30_000, 30_000),
    }
    hostile = made[data] if isinstance(data, str) else data
    pixels, place = one_release(tmp_path, sample, **{column: hostile})
    with pytest.raises(ShardError, match=told) as error:
        pixels.thumb(place, 64) if column == "image_jpeg" else pixels.mask(place, "mask", 64)
    assert "row group 0" in str(error.value)
    assert place.entry.path in str(error.value)
    assert sample.id in str(error.value)
    assert "curate verify" in str(error.value)


def _png_of(height: int, width: int) -> bytes:
    small = encode_mask(np.ones((8, 8), np.bool_))
    return small[:16] + width.to_bytes(4, "big") + height.to_bytes(4, "big") + small[24:]


def test_a_flipped_byte_is_seen_by_the_checksum_of_its_page(tmp_path: Path) -> None:
    folder = releases.write(tmp_path, releases.figures(12))
    catalog = Catalog.open(folder)
    place = next(p for s in releases.figures(12) if (p := catalog.place(s.id)) and p.folder == "train")
    Pixels(catalog).thumb(place, 64)
    path = folder / place.entry.path
    data = bytearray(path.read_bytes())
    row = pq.read_table(path).to_pylist()[place.row]
    data[data.index(row["image"]["bytes"]) + 200] ^= 1
    path.write_bytes(data)
    with pytest.raises(ShardError, match="row group"):
        Pixels(catalog).thumb(place, 64)


def test_a_shard_that_is_gone_shorter_or_exchanged_meanwhile_is_refused(tmp_path: Path) -> None:
    folder = releases.write(tmp_path, releases.figures(12))
    catalog = Catalog.open(folder)
    places = [p for s in releases.figures(12) if (p := catalog.place(s.id)) and p.folder == "train"]
    known = Pixels(catalog, cache_bytes=1)  # nothing stays
    known.thumb(places[0], 64)
    path = folder / places[0].entry.path
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    for pixels in (known, Pixels(catalog)):
        with pytest.raises(ShardError, match=r"exchanged|truncated"):
            pixels.thumb(places[0], 64)
    path.unlink()
    with pytest.raises(ShardError, match="is missing"):
        Pixels(catalog).thumb(places[0], 64)


def test_a_row_group_is_read_once_for_all_who_ask_at_the_same_time(
    catalog: Catalog, drawn: tuple[Path, list[releases.Sample]], monkeypatch: pytest.MonkeyPatch
) -> None:
    import review.pixels

    read = review.pixels.read_unit
    units: list[Any] = []
    monkeypatch.setattr(review.pixels, "read_unit", lambda unit, *a, **k: units.append(unit) or read(unit, *a, **k))
    pixels = Pixels(catalog)
    places = [p for s in with_pixels(drawn[1]) if (p := catalog.place(s.id))]
    made: list[bytes] = []
    threads = [threading.Thread(target=lambda p=p: made.append(pixels.thumb(p, 64))) for p in places * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 2 * len(places)
    groups = {(p.entry.path, p.row // releases.PER_GROUP) for p in places}
    assert len(units) == len(groups)


def test_large_row_groups_are_read_one_at_a_time_and_too_large_ones_never(
    catalog: Catalog, drawn: tuple[Path, list[releases.Sample]], monkeypatch: pytest.MonkeyPatch
) -> None:
    import review.pixels

    read, lock, inside, most = review.pixels.read_unit, threading.Lock(), 0, 0

    def counted(*arguments: Any, **more: Any) -> Any:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        time.sleep(0.02)
        found = read(*arguments, **more)
        with lock:
            inside -= 1
        return found

    monkeypatch.setattr(review.pixels, "read_unit", counted)
    monkeypatch.setattr(review.pixels, "LARGE_UNIT_BYTES", 0)
    pixels = Pixels(catalog)
    places = [p for s in with_pixels(drawn[1]) if (p := catalog.place(s.id))]
    threads = [threading.Thread(target=pixels.thumb, args=(p, 64)) for p in places]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    monkeypatch.setattr(review.pixels, "MAX_UNIT_BYTES", 100)
    with pytest.raises(ShardError, match="the limit is 100"):
        Pixels(catalog).thumb(places[0], 64)


def test_the_cache_holds_no_more_than_its_limit_and_answers_do_not_depend_on_it(
    catalog: Catalog, drawn: tuple[Path, list[releases.Sample]]
) -> None:
    small, large = Pixels(catalog, cache_bytes=20_000), Pixels(catalog)
    for sample in with_pixels(drawn[1]) * 2:
        place = catalog.place(sample.id)
        assert place is not None
        assert small.thumb(place, 64) == large.thumb(place, 64)
        assert small.mask(place, KINDS[0], 64) == large.mask(place, KINDS[0], 64)
        assert small.cached_bytes <= 20_000
    assert large.cached_bytes > 20_000


def test_real_photographs_are_shown_as_they_are(data: Path, tmp_path: Path) -> None:
    samples = releases.photographs(data, 6)
    catalog = Catalog.open(releases.write(tmp_path, samples))
    pixels = Pixels(catalog)
    for sample in with_pixels(samples):
        place = catalog.place(sample.id)
        assert place is not None
        shown = image_of(pixels.thumb(place, 160)).astype(int)
        expected = cv2.resize(sample.image, shown.shape[1::-1], interpolation=cv2.INTER_AREA).astype(int)
        assert np.abs(shown - expected).mean() < 8
