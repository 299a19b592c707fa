"""The held-out images are scored without what is ignored, and shown from the worst to the best."""

import cv2
import numpy as np
import pytest

from evaluation.masks import iou
from manifests.image import decode_image
from manifests.labelled import load_labelled, read_labelled
from teachers.crops import Scenes
from teachers.held_out import SHOWN, appraise, mean_iou
from teachers.pointrend import probabilities
from teachers.recipe import TeachConfig, TeachError
from teachers.semantic import SemanticConfig, SemanticPointRend, build

NETWORK = SemanticConfig(
    depth=18, stem_out=4, res2_out=4, norm="GN", fpn_out=4, sem_convs_dim=32, point_fc_dim=4, min_size_test=64,
    max_size_test=96, subdivision_num_points=64,
)  # fmt: skip


@pytest.fixture(scope="module")
def network() -> SemanticPointRend:
    return build(NETWORK, 0).eval()


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Scenes:
    """Noise; the first image is ignored as a whole, the second in part."""
    folder = tmp_path_factory.mktemp("labelled")
    rng = np.random.default_rng(0)
    for part in ("images", "masks", "ignore"):
        (folder / part).mkdir()
    for i in range(30):
        mask = np.zeros((48, 64), np.uint8)
        mask[10 + i % 20 :, 20:50] = 255
        ignore = np.zeros((48, 64), np.uint8)
        ignore[:, : {0: 64, 1: 30}.get(i, 0)] = 255
        for part, picture in (("images", rng.integers(0, 256, (48, 64, 3))), ("masks", mask), ("ignore", ignore)):
            assert cv2.imwrite(str(folder / part / f"s{i:02}.png"), picture.astype(np.uint8))
    return Scenes(read_labelled(folder), (), (), TeachConfig.quick())


def test_the_mean_is_over_images_with_a_pixel_that_counts(network: SemanticPointRend, scenes: Scenes) -> None:
    names = tuple(scenes.samples)
    expected = []
    for name in names[1:]:
        image, mask, ignore = load_labelled(scenes.samples[name])
        expected.append(iou(probabilities(network, [image])[0] >= 0.5, mask, ignore))
    found = appraise(network, scenes, names)
    assert mean_iou(network, scenes, names) == pytest.approx(np.mean(expected))
    assert found.mean("iou") == pytest.approx(np.mean(expected))
    assert [image.name for image in found.images] == list(names[1:])
    assert found.images[0].ignored == pytest.approx(30 / 64)
    assert found.before.temperature == 1.0
    assert found.after.nll <= found.before.nll + 1e-9


def test_the_sheet_shows_as_many_as_it_may_and_follows_from_the_images(
    network: SemanticPointRend, scenes: Scenes
) -> None:
    names = tuple(scenes.samples)
    many = appraise(network, scenes, names).overlays
    assert many == appraise(network, scenes, names).overlays
    few = appraise(network, scenes, names[1:4]).overlays
    tall, low = (decode_image(data).pixels.shape for data in (many, few))
    assert tall[1] == pytest.approx(2 * low[1], rel=0.01)  # six columns and three
    assert tall[0] > 3.5 * low[0]  # four rows of `SHOWN` and one
    assert SHOWN == 24


def test_a_fold_without_a_pixel_that_counts_is_refused(network: SemanticPointRend, scenes: Scenes) -> None:
    with pytest.raises(TeachError, match="all pixels of the 1 held-out images are ignored"):
        mean_iou(network, scenes, tuple(scenes.samples)[:1])
