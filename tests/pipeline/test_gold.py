"""Laws of human masks: each image has one role, students see it at their size, and no pixel to ignore is lost."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from manifests.audit import Audit, Drawn, Stratum, render_audit
from manifests.mask import decode_mask
from pipeline.embed import decode_jpeg, shrink
from pipeline.errors import InputError
from pipeline.frames import content_sha256
from pipeline.gold import GOLD, _content, check_audits, check_sets, gold_table, labelled_digest, read_human
from tests.pipeline.media import texture

MOST = 1 << 20


def draw_gold(folder: Path) -> None:
    """Pictures of 128 x 64, 40 x 32 and 64 x 192 pixels; the first has pixels to ignore."""
    for name in ("images", "masks", "ignore"):
        (folder / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number, (height, width) in enumerate(((64, 128), (32, 40), (192, 64))):
        Image.fromarray(texture(number, height, width)).save(folder / "images" / f"{number}.png")
        mask = np.kron(rng.random((height // 2, width // 2)) < 0.5, np.ones((2, 2))) > 0
        Image.fromarray(mask.astype(np.uint8) * 255).save(folder / "masks" / f"{number}.png")
    void = np.zeros((64, 128), np.uint8)
    void[10, 20] = void[33, 40:50] = 255
    Image.fromarray(void).save(folder / "ignore" / "0.png")


def pixels(path: Path) -> NDArray[np.uint8]:
    return np.asarray(Image.open(path))


def test_gold_has_the_size_of_the_students_and_keeps_every_ignored_pixel(tmp_path: Path) -> None:
    draw_gold(tmp_path)
    table = gold_table({"labelled": tmp_path}, 64)
    assert table.schema.equals(GOLD)
    rows = table.to_pylist()
    assert [(row["role"], row["name"]) for row in rows] == [("labelled", name) for name in ("0", "1", "2")]
    sizes = [(32, 64), (32, 40), (64, 21)]
    for row, size in zip(rows, sizes, strict=True):
        picture = decode_jpeg(row["picture"])
        assert picture.shape == (*size, 3)
        assert np.abs(picture.astype(int) - shrink(pixels(tmp_path / "images" / f"{row['name']}.png"), 64)).mean() < 8
        assert decode_mask(row["mask"], MOST).shape == decode_mask(row["ignore"], MOST).shape == size
    # Blocks of 2 x 2 pixels that are wholly person or not, and one void pixel condemns its block.
    whole = pixels(tmp_path / "masks" / "0.png")[::2, ::2] > 0
    np.testing.assert_array_equal(decode_mask(rows[0]["mask"], MOST), whole)
    void = pixels(tmp_path / "ignore" / "0.png").reshape(32, 2, 64, 2).max(axis=(1, 3)) > 0
    np.testing.assert_array_equal(decode_mask(rows[0]["ignore"], MOST), void)
    np.testing.assert_array_equal(decode_mask(rows[1]["mask"], MOST), pixels(tmp_path / "masks" / "1.png") > 0)
    assert not decode_mask(rows[1]["ignore"], MOST).any()


def spoil_by_missing_mask(folder: Path) -> str:
    (folder / "masks" / "1.png").unlink()
    return "an image must have a mask of the same stem"


def spoil_by_size(folder: Path) -> str:
    Image.fromarray(np.zeros((40, 40), np.uint8)).save(folder / "masks" / "1.png")
    return r"1 \(40x32 and 40x40\)"


def spoil_by_absence(folder: Path) -> str:
    (folder / "images").rename(folder / "pictures")
    return "images.*must be a folder"


@pytest.mark.parametrize("spoil", [spoil_by_missing_mask, spoil_by_size, spoil_by_absence])
def test_a_labelled_set_that_does_not_fit_together_is_refused(tmp_path: Path, spoil: Callable[[Path], str]) -> None:
    draw_gold(tmp_path)
    message = spoil(tmp_path)
    with pytest.raises(InputError, match=message):
        gold_table({"labelled": tmp_path}, 64)
    with pytest.raises(InputError, match=rf"--labelled: .*{message}"):
        labelled_digest(tmp_path)


def test_a_picture_that_ends_early_is_named(tmp_path: Path) -> None:
    draw_gold(tmp_path)
    data = (tmp_path / "images" / "2.png").read_bytes()
    (tmp_path / "images" / "2.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"images/2.png.*replace or remove the file"):
        gold_table({"labelled": tmp_path}, 64)


def test_the_digest_of_a_labelled_set_is_of_its_files(tmp_path: Path) -> None:
    draw_gold(tmp_path / "a")
    draw_gold(tmp_path / "b")
    assert labelled_digest(tmp_path / "a") == labelled_digest(tmp_path / "b")
    (tmp_path / "b" / "ignore" / "0.png").unlink()
    assert labelled_digest(tmp_path / "a") != labelled_digest(tmp_path / "b")


# Roles ----------------------------------------------------------------------------------------------------------------


def draw_audit(folder: Path, number: int = 7) -> NDArray[np.uint8]:
    """An audit of one frame, whose pixels are returned; it is masked, and shown as a file that decodes to them."""
    frame = texture(number, 36, 40)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    drawn = Drawn(name="0001", sample_id="0" * 32, content_sha256=content_sha256(frame).hex(), width=40, height=36)
    strata = {"0": Stratum(population=1, drawn=1)}
    audit = Audit(seed=0, size=1, origin="stage", fingerprint="0" * 64, samples=(drawn,), strata=strata)
    (folder / "audit.json").write_bytes(render_audit(audit))
    Image.fromarray(frame).save(folder / "images" / "0001.jpg", quality=90)
    Image.fromarray(np.zeros((36, 40), np.uint8)).save(folder / "masks" / "0001.png")
    return frame


def add_labelled(folder: Path, name: str, image: NDArray[np.uint8]) -> None:
    Image.fromarray(image).save(folder / "images" / f"{name}.png")
    Image.fromarray(np.zeros(image.shape[:2], np.uint8)).save(folder / "masks" / f"{name}.png")


def test_both_sets_are_in_the_table_with_their_role(tmp_path: Path) -> None:
    draw_gold(tmp_path / "labelled")
    draw_gold(tmp_path / "gold")
    rows = gold_table({"labelled": tmp_path / "labelled", "gold": tmp_path / "gold"}, 64).to_pylist()
    assert [row["role"] for row in rows] == ["labelled"] * 3 + ["gold"] * 3
    assert [row["mask"] for row in rows[:3]] == [row["mask"] for row in rows[3:]]


def test_an_image_in_gold_and_in_labelled_is_refused_by_its_pixels_and_both_are_named(tmp_path: Path) -> None:
    draw_gold(tmp_path / "labelled")
    draw_gold(tmp_path / "gold")
    for number in (0, 2):
        (tmp_path / "gold" / "images" / f"{number}.png").unlink()
        (tmp_path / "gold" / "masks" / f"{number}.png").unlink()
    shutil.rmtree(tmp_path / "gold" / "ignore")
    Image.open(tmp_path / "gold" / "images" / "1.png").save(tmp_path / "gold" / "images" / "1.webp", lossless=True)
    (tmp_path / "gold" / "images" / "1.png").unlink()
    with pytest.raises(InputError, match=r"must not be in --labelled.*gold/images/1.webp is .*labelled/images/1.png"):
        read_human(tmp_path / "labelled", tmp_path / "gold", [])
    add_labelled(tmp_path / "gold", "1", texture(99, 32, 40))
    (tmp_path / "gold" / "images" / "1.webp").unlink()
    human = read_human(tmp_path / "labelled", tmp_path / "gold", [])
    assert set(human.digests) == {"labelled", "gold"}


@pytest.mark.parametrize("role", ["labelled", "gold"])
@pytest.mark.parametrize("copied", ["source", "shown"])
def test_an_audited_frame_that_trains_a_network_is_refused(tmp_path: Path, role: str, copied: str) -> None:
    draw_gold(tmp_path / "labelled")
    (tmp_path / "gold" / "images").mkdir(parents=True)
    (tmp_path / "gold" / "masks").mkdir()
    add_labelled(tmp_path / "gold", "other", texture(50, 40, 40))
    frame = draw_audit(tmp_path / "audit")
    assert read_human(tmp_path / "labelled", tmp_path / "gold", [tmp_path / "audit"]).unfinished == (0,)
    shown = np.asarray(Image.open(tmp_path / "audit" / "images" / "0001.jpg"))
    add_labelled(tmp_path / role, "stolen", frame if copied == "source" else shown)
    with pytest.raises(
        InputError, match=rf"a frame of --audit .*audit must not be in --{role}: .*0001.jpg is .*stolen"
    ):
        read_human(tmp_path / "labelled", tmp_path / "gold", [tmp_path / "audit"])


def test_an_audit_given_twice_is_refused_and_a_copy_is_welcome(tmp_path: Path) -> None:
    draw_gold(tmp_path / "labelled")
    draw_audit(tmp_path / "audit")
    with pytest.raises(InputError, match=r"--audit .*audit is given twice; a second annotator works on a copy"):
        read_human(tmp_path / "labelled", None, [tmp_path / "audit", tmp_path / "x" / ".." / "audit"])
    shutil.copytree(tmp_path / "audit", tmp_path / "copy")
    human = read_human(tmp_path / "labelled", None, [tmp_path / "audit", tmp_path / "copy"])
    assert len(human.audits) == 2
    assert human.audit_digests[0] == human.audit_digests[1]


def test_a_folder_that_is_no_audit_is_refused(tmp_path: Path) -> None:
    draw_gold(tmp_path / "labelled")
    with pytest.raises(InputError, match=r"--audit: .*audit.json"):
        read_human(tmp_path / "labelled", None, [tmp_path / "labelled"])


def test_a_gold_set_that_does_not_fit_together_is_refused(tmp_path: Path) -> None:
    draw_gold(tmp_path / "labelled")
    with pytest.raises(InputError, match=r"--gold: .*must be a folder"):
        read_human(tmp_path / "labelled", tmp_path / "nowhere", [])


# While a run lasts ----------------------------------------------------------------------------------------------------


def test_masks_that_change_while_a_run_lasts_are_refused_by_folder(tmp_path: Path) -> None:
    draw_gold(tmp_path / "labelled")
    draw_audit(tmp_path / "audit")
    human = read_human(tmp_path / "labelled", None, [tmp_path / "audit"])
    check_sets(human)
    check_audits(human)
    Image.fromarray(np.full((32, 40), 255, np.uint8)).save(tmp_path / "labelled" / "masks" / "1.png")
    with pytest.raises(InputError, match=r"--labelled .*labelled has changed since the run began; run again"):
        check_sets(human)
    mask = tmp_path / "audit" / "masks" / "0001.png"
    Image.fromarray(np.full((36, 40), 255, np.uint8)).save(mask)
    with pytest.raises(InputError, match=r"--audit .*audit has changed since the run began; run again"):
        check_audits(human)
    mask.unlink()
    with pytest.raises(InputError, match=r"--audit: .*0001.png.*has changed since the run began"):
        check_audits(human)


def test_an_image_that_is_gone_has_no_content_to_share(tmp_path: Path) -> None:
    assert _content(tmp_path / "absent.png") is None
