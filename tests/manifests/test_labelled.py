"""Laws of a folder of labelled images: whole or refused, and the digest names its content."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from manifests.labelled import Labelled, LabelledError, labelled_sha256, load_labelled, read_labelled


def write(path: Path, width: int = 48, height: int = 40, orientation: int = 1, value: int = 255) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    block = Image.Exif()
    block[0x0112] = orientation
    gray = np.zeros((height, width), np.uint8)
    gray[: height // 2] = value
    Image.fromarray(gray).save(path, "PNG", exif=block)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b", "a", "c d"):
        write(tmp_path / "images" / f"{name}.png")
        write(tmp_path / "masks" / f"{name}.png")
    write(tmp_path / "ignore" / "b.png", value=1)
    return tmp_path


def test_pairs_are_listed_by_name_with_their_ignore(folder: Path) -> None:
    (folder / "images" / ".DS_Store").write_bytes(b"junk")
    (folder / "masks" / "._a.png").write_bytes(b"junk")
    samples = read_labelled(folder)
    assert [sample.name for sample in samples] == ["a", "b", "c d"]
    assert [sample.ignore is not None for sample in samples] == [False, True, False]
    image, mask, ignore = load_labelled(samples[1])
    assert (image.shape, mask.shape, ignore.shape) == ((40, 48, 3), (40, 48), (40, 48))
    assert mask[:20].all()
    assert not mask[20:].any()
    np.testing.assert_array_equal(mask, ignore)
    assert not load_labelled(samples[0])[2].any()


def test_the_labelled_pack_is_read_whole(data: Path) -> None:
    samples = read_labelled(data)
    assert len(samples) == 283
    assert sum(sample.ignore is not None for sample in samples) == len(list((data / "ignore").iterdir()))
    for sample in samples[::40]:
        image, mask, ignore = load_labelled(sample)
        assert image.shape[:2] == mask.shape == ignore.shape


def test_a_turned_image_fits_an_upright_mask(folder: Path) -> None:
    write(folder / "images" / "a.png", width=40, height=48, orientation=6)
    image, mask, _ = load_labelled(read_labelled(folder)[0])
    assert image.shape[:2] == mask.shape == (40, 48)


def empty(folder: Path) -> None:
    shutil.rmtree(folder / "ignore")
    for path in folder.rglob("*.png"):
        path.unlink()


BREAKS: dict[str, Callable[[Path], object]] = {
    "no folder": lambda folder: shutil.rmtree(folder / "masks"),
    "no mask": lambda folder: (folder / "masks" / "a.png").unlink(),
    "no image": lambda folder: (folder / "images" / "a.png").unlink(),
    "lost ignore": lambda folder: write(folder / "ignore" / "z.png"),
    "size": lambda folder: write(folder / "masks" / "a.png", width=47),
    "ignore size": lambda folder: write(folder / "ignore" / "b.png", height=39),
    "stored size": lambda folder: write(folder / "images" / "a.png", orientation=6),
    "broken": lambda folder: (folder / "masks" / "a.png").write_bytes(b"<html>"),
    "two": lambda folder: write(folder / "images" / "a.jpg"),
    "subfolder": lambda folder: (folder / "images" / "more").mkdir(),
    "empty": empty,
}


@pytest.mark.parametrize(
    ("how", "rule"),
    [
        ("no folder", "must be a folder"),
        ("no mask", "an image must have a mask .* 'a'"),
        ("no image", "a mask must have an image .* 'a'"),
        ("lost ignore", "a file in ignore/ must have an image .* 'z'"),
        ("size", r"one upright size: 1 at fault: 'a \(48x40 and 47x40\)'"),
        ("ignore size", r"one upright size: 1 at fault: 'b \(48x40 and 48x40 and 48x39\)'"),
        ("stored size", r"one upright size: 1 at fault: 'a \(40x48 and 48x40\)'"),
        ("broken", r"must be an image within the limits: 1 at fault: .masks/a.png \(UnsupportedFormat"),
        ("two", "one file per stem: 1 at fault: 'a.jpg'"),
        ("subfolder", "files only: 1 at fault: 'more'"),
        ("empty", "must hold at least one image"),
    ],
)
def test_a_set_that_does_not_fit_is_refused_by_name(folder: Path, how: str, rule: str) -> None:
    BREAKS[how](folder)
    with pytest.raises(LabelledError, match=rule):
        read_labelled(folder)


def test_the_first_ten_are_named_and_the_rest_counted(folder: Path) -> None:
    for number in range(13):
        write(folder / "images" / f"lone{number:02}.png")
    with pytest.raises(LabelledError, match=r"13 at fault: .*'lone09' and 3 more; add the mask"):
        read_labelled(folder)


def test_the_size_of_a_pair_of_the_pack_is_refused(data: Path, tmp_path: Path) -> None:
    for part, name in (("images", "pair_size_mismatch.jpg"), ("masks", "pair_size_mismatch_mask.png")):
        (tmp_path / part).mkdir()
        shutil.copy(data / "bad" / name, tmp_path / part / f"pair{Path(name).suffix}")
    with pytest.raises(LabelledError, match="612x408 and 552x368"):
        read_labelled(tmp_path)


def test_a_broken_body_is_found_on_loading(folder: Path) -> None:
    path = folder / "masks" / "a.png"
    path.write_bytes(path.read_bytes()[:-30])
    sample = read_labelled(folder)[0]
    with pytest.raises(LabelledError, match=r"a\.png.*; replace or remove"):
        load_labelled(sample)


def test_sizes_are_checked_again_on_loading(folder: Path) -> None:
    sample = read_labelled(folder)[0]
    write(sample.mask, width=47)
    with pytest.raises(LabelledError, match="'a': image and masks must have one upright size"):
        load_labelled(sample)


def test_names_that_are_no_text_can_be_told(folder: Path) -> None:
    write(folder / "images" / "line\nbreak\udcff.png")
    with pytest.raises(LabelledError) as caught:
        read_labelled(folder)
    assert str(caught.value).isprintable()
    str(caught.value).encode()


def test_the_digest_names_content_and_not_place_or_order(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    samples = read_labelled(folder)
    copy = tmp_path_factory.mktemp("copy") / "set"
    shutil.copytree(folder, copy)
    digest = labelled_sha256(samples)
    assert labelled_sha256(read_labelled(copy)) == digest
    assert labelled_sha256(reversed(samples)) == digest


@pytest.mark.parametrize("part", ["images", "masks", "ignore"])
def test_every_byte_and_name_enters_the_digest(folder: Path, part: str) -> None:
    digest = labelled_sha256(read_labelled(folder))
    path = folder / part / "b.png"
    path.write_bytes(path.read_bytes() + b"\0")
    changed = labelled_sha256(read_labelled(folder))
    assert changed != digest
    for each in folder.rglob("b.png"):
        each.rename(each.with_name("bb.png"))
    assert labelled_sha256(read_labelled(folder)) not in {digest, changed}


def test_a_file_moved_from_mask_to_ignore_changes_the_digest(folder: Path) -> None:
    image, mask = folder / "images" / "a.png", folder / "masks" / "a.png"
    with_ignore = Labelled(name="a", image=image, mask=mask, ignore=mask)
    without = Labelled(name="a", image=image, mask=mask, ignore=None)
    assert labelled_sha256([with_ignore]) != labelled_sha256([without])
