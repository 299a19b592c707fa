"""Laws of the appraisal: scores are of an image alone at its own size, pictures hold what they promise."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from evaluation.masks import iou
from manifests.image import decode_image
from manifests.mask import encode_mask
from students.appraisal import SHOWN, Score, overlays, predict, scores, views_sheet
from students.data import bucket_sizes
from students.model import Student, StudentConfig, build_student
from students.prior import PriorConfig
from students.views import Encoded, ViewConfig, draw_view, plain_view
from tests.students.releases import draw

TINY = StudentConfig(depths=(1, 1, 1, 1, 1), width=0.5)
SIZES = bucket_sizes(64)
WHITE = np.array([255, 255, 255])


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module", params=[3, 4])
def student(request: pytest.FixtureRequest) -> Student:
    return build_student(replace(TINY, in_channels=request.param), 1).eval()


def encoded(seed: int, mask: NDArray[np.bool_] | None = None, ignore: NDArray[np.bool_] | None = None) -> Encoded:
    drawn = draw(seed)
    good, data = cv2.imencode(".png", drawn.image[:, :, ::-1])
    assert good
    height, width = drawn.mask.shape
    return Encoded(
        name=f"s{seed:02}", image=data.tobytes(), mask=encode_mask(drawn.mask if mask is None else mask),
        ignore=None if ignore is None else encode_mask(ignore), height=height, width=width,
    )  # fmt: skip


def test_a_prediction_has_the_images_own_size_whatever_it_is(student: Student) -> None:
    for height, width in ((1, 1), (301, 97), (48, 200), (64, 64)):
        image = np.full((height, width, 3), 90, np.uint8)
        found = predict(student, image, SIZES)
        assert found.shape == (height, width)
        assert found.dtype == np.float32
        assert 0 <= found.min() <= found.max() <= 1


def test_a_score_is_that_of_the_prediction_against_the_truth_that_counts(student: Student) -> None:
    image = draw(4).image
    found = predict(student, image, SIZES) >= 0.5
    ignore = np.zeros_like(found)
    ignore[:, :20] = True
    one, other = scores(student, [encoded(4, ~found, ignore), encoded(4, found)], SIZES)
    assert one.iou == iou(found, ~found, ignore) == 0.0
    assert (other.iou, other.boundary_iou) == (1.0, 1.0)


def test_an_image_that_is_ignored_as_a_whole_has_no_score(student: Student) -> None:
    everything = np.ones_like(draw(5).mask)
    found = scores(student, [encoded(4), encoded(5, ignore=everything), encoded(6)], SIZES)
    assert [score.name for score in found] == ["s04", "s06"]


def test_a_score_does_not_depend_on_its_mates(student: Student) -> None:
    samples = [encoded(seed) for seed in range(4)]
    assert scores(student, samples, SIZES) == [scores(student, [sample], SIZES)[0] for sample in samples]


@pytest.mark.parametrize("count", [1, 2, SHOWN, SHOWN + 7])
def test_overlays_show_up_to_their_number_of_images(count: int) -> None:
    student = build_student(TINY, 1).eval()
    samples = [replace(encoded(seed % 3), name=f"n{seed}") for seed in range(count)]
    found = [Score(name=f"n{seed}", iou=seed / 100, boundary_iou=0.0) for seed in range(count)]
    first, again = (overlays(student, order, SIZES, found) for order in (samples, samples[::-1]))
    assert first == again
    sheet = decode_image(first).pixels
    assert sheet.shape[1] > sheet.shape[0] or count < 4


@pytest.mark.parametrize("shape", [(48, 80), (80, 48)])
@pytest.mark.parametrize("prior", [None, PriorConfig(empty=0, full=1, true=0, stale=0, shifted=0, scaled=0, torn=0,
                                                     thick=0, thin=0, own=0)])  # fmt: skip
def test_a_sheet_of_views_shows_each_with_its_previous_mask(shape: tuple[int, int], prior: PriorConfig | None) -> None:
    """A full previous mask covers as much of the sheet in white as the view beside it, both enlarged to be seen."""
    sample = encoded(1 if shape == (48, 80) else 2)
    assert (sample.height, sample.width) == shape
    size = (64, 96) if shape == (48, 80) else (96, 64)
    view = draw_view(sample, size, ViewConfig.plain(), np.random.default_rng(0), prior=prior)
    sheet = decode_image(views_sheet([view], ["a name"])).pixels
    white = int((sheet.astype(int) > 250).all(axis=2).sum())
    assert white < 2000 if prior is None else abs(white - 4 * 64 * 96) < 2500


def test_a_view_larger_than_a_tile_is_shrunk() -> None:
    sheet = decode_image(views_sheet([plain_view(encoded(0), (384, 384))], ["large"])).pixels
    assert max(sheet.shape[:2]) < 384
