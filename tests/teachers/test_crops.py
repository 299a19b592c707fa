"""Crops follow from seed, step and slot alone, whoever draws them; backgrounds are pictures or are refused."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from manifests.labelled import read_labelled
from teachers.crops import Feed, Scenes, backgrounds_sha256, read_backgrounds
from teachers.recipe import TeachConfig, TeachError

CONFIG = replace(TeachConfig.quick(), batch=4, compose=0.7)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Red people on blue; every third image has none."""
    folder = tmp_path_factory.mktemp("labelled")
    for part in ("images", "masks"):
        (folder / part).mkdir()
    for i in range(9):
        mask = np.zeros((80, 100), np.uint8)
        if i % 3:
            mask[20:70, 5 * i : 5 * i + 20] = 255
        image = np.full((80, 100, 3), (200, 60, 20), np.uint8)  # BGR
        image[mask > 0] = (20, 60, 200)
        assert cv2.imwrite(str(folder / "images" / f"s{i}.png"), image)
        assert cv2.imwrite(str(folder / "masks" / f"s{i}.png"), mask)
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(4):
        picture = np.random.default_rng(i).integers(0, 40, (60, 80, 3), dtype=np.uint8)
        picture[:, :, 1] += 170
        assert cv2.imwrite(str(folder / f"p{i}.jpg"), picture)
    return folder


def scenes(labelled: Path, pictures: Path | None = None, config: TeachConfig = CONFIG) -> Scenes:
    samples = read_labelled(labelled)
    return Scenes(samples, [s.name for s in samples], read_backgrounds(str(pictures or "")), config)


def test_crops_are_the_same_whoever_draws_them(labelled: Path, pictures: Path) -> None:
    """In threads ahead of time, in shares of several processes, and with a cache that holds nothing."""
    alone = Feed(scenes(labelled, pictures), 1, range(4), 0)
    ahead = Feed(scenes(labelled, pictures), 1, range(4), 3)
    shares = [Feed(scenes(labelled, pictures, replace(CONFIG, cache_bytes=0)), 1, range(r, 4, 2), 0) for r in (0, 1)]
    for step in (0, 1, 5, 6):
        images, labels = alone.batch(step)
        assert images.shape == (4, 3, 64, 64)
        assert images.dtype == torch.float32
        assert labels.dtype == torch.uint8
        assert all(torch.equal(a, b) for a, b in zip((images, labels), ahead.batch(step), strict=True))
        for rank, share in enumerate(shares):
            theirs = share.batch(step)
            assert torch.equal(images[rank::2], theirs[0])
            assert torch.equal(labels[rank::2], theirs[1])
    ahead.close()


def test_every_picture_is_seen_once_an_epoch(labelled: Path) -> None:
    config = replace(CONFIG, batch=3, compose=0.0)
    drawn: list[str] = []
    seen = scenes(labelled, config=config)
    draw = seen.draw

    def noted(name: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        drawn.append(name)
        return draw(name, rng)

    seen.draw = noted  # type: ignore[method-assign]
    feed = Feed(seen, 0, range(3), 0)
    for step in range(6):
        feed.batch(step)
    assert sorted(drawn[:9]) == sorted(drawn[9:]) == sorted(seen.names)
    assert drawn[:9] != drawn[9:]


def test_compositions_show_people_elsewhere_and_sometimes_nobody(labelled: Path, pictures: Path) -> None:
    source = scenes(labelled, pictures, replace(CONFIG, compose=1.0))
    plain = source.shrunken("s1")
    green = people = nobody = 0
    for seed in range(200):
        image, label = source.draw("s1", np.random.default_rng(seed))
        green += bool((image[:, :, 1].astype(int) - image[:, :, 0] > 60).any())
        people += bool((label == 1).any())
        nobody += not (label == 1).any()
        assert not np.array_equal(label, plain[1])
        red = image[:, :, 0].astype(int) - image[:, :, 2] > 100
        assert (label[red] == 1).mean() > 0.8 if red.any() else True
    assert 60 <= green <= 140
    assert 4 <= nobody <= 40
    assert people >= 160


def test_without_compositions_a_picture_is_as_it_is(labelled: Path) -> None:
    source = scenes(labelled, config=replace(CONFIG, compose=0.0))
    assert source.draw("s1", np.random.default_rng(0))[0] is source.shrunken("s1")[0]


def test_a_set_of_close_ups_alone_is_composed_of_what_there_is(tmp_path: Path) -> None:
    """People fill every picture: none can be painted out, and none is needed."""
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    for i in range(3):
        assert cv2.imwrite(str(tmp_path / "images" / f"s{i}.png"), np.full((60, 60, 3), 90, np.uint8))
        assert cv2.imwrite(str(tmp_path / "masks" / f"s{i}.png"), np.full((60, 60), 255, np.uint8))
    source = scenes(tmp_path, config=replace(CONFIG, compose=1.0))
    for seed in range(20):
        assert (source.draw("s0", np.random.default_rng(seed))[1] == 1).all()


def test_backgrounds_are_known_by_content(pictures: Path, tmp_path: Path) -> None:
    found = read_backgrounds(str(pictures))
    assert [p.name for p in found] == ["p0.jpg", "p1.jpg", "p2.jpg", "p3.jpg"]
    before = backgrounds_sha256(found)
    pictures.rename(tmp_path / "moved")
    assert backgrounds_sha256(read_backgrounds(str(tmp_path / "moved"))) == before
    (tmp_path / "moved" / "p3.jpg").unlink()
    assert backgrounds_sha256(read_backgrounds(str(tmp_path / "moved"))) != before
    assert (read_backgrounds(""), backgrounds_sha256(())) == ((), "")


def test_backgrounds_that_are_no_pictures_are_refused_by_name(pictures: Path, tmp_path: Path) -> None:
    (pictures / "notes.txt").write_text("no picture")
    (pictures / ".hidden").write_text("not looked at")
    assert cv2.imwrite(str(pictures / "small.png"), np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(TeachError, match=r"'notes\.txt' \(UnsupportedFormat.*'small\.png' \(TooSmall"):
        read_backgrounds(str(pictures))
    (tmp_path / "empty").mkdir()
    with pytest.raises(TeachError, match="is empty: add pictures"):
        read_backgrounds(str(tmp_path / "empty"))
    with pytest.raises(TeachError, match="cannot be read: No such file"):
        read_backgrounds(str(tmp_path / "absent"))
    (tmp_path / "empty" / "folder").mkdir()
    with pytest.raises(TeachError, match=r"must hold images only: 'folder' \(no file\)"):
        read_backgrounds(str(tmp_path / "empty"))


def test_a_background_broken_further_on_is_named_when_it_is_met(labelled: Path, pictures: Path) -> None:
    for path in pictures.iterdir():
        path.write_bytes(path.read_bytes()[:-200])
    source = scenes(labelled, pictures, replace(CONFIG, compose=1.0))
    seed = next(s for s in range(50) if meets_a_folder(s))
    with pytest.raises(TeachError, match=r"p\d\.jpg' cannot be read: .*remove it"):
        source.draw("s1", np.random.default_rng(seed))


def meets_a_folder(seed: int) -> bool:
    """Whether a scene of this seed takes its background from the folder, the third thing drawn."""
    return bool(np.random.default_rng(seed).random(3)[2] < 0.5)
