"""PointRend as a backend: what it answers does not depend on company, precision moves few pixels, compiling none."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.camera import render
from pipeline.scene import draw_scene
from teachers import fuse, pointrend
from teachers.backbone import normalise, pad, resize
from teachers.instance import InstanceConfig, build_instance
from teachers.pointrend import PointRendBackend, probabilities, same_size
from teachers.semantic import SemanticConfig, SemanticPointRend, build
from teachers.teacher import TeacherError

TINY = SemanticConfig(
    depth=18, stem_out=8, res2_out=8, norm="BN", fpn_out=8, sem_convs_dim=32, point_fc_dim=8,
    subdivision_num_points=300, min_size_test=64, max_size_test=128,
)  # fmt: skip
BOXES = InstanceConfig(
    depth=18, stem_out=8, res2_out=8, norm="BN", fpn_out=8, box_fc_dim=16, mask_conv_dim=8, mask_fc_dim=16,
    point_fc_dim=8, num_classes=2, min_size_test=64, max_size_test=128, score_thresh_test=0.01,
    detections_per_image=6, person_classes=(0, 1),
)  # fmt: skip
SHA256 = "0" * 64


def photo(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def semantic() -> SemanticPointRend:
    model = build(TINY, 0)
    model.sem_seg_head.point_head.predictor.weight.data.mul_(100)
    return model


@pytest.fixture(scope="module", params=["semantic", "instance"])
def backend(request: pytest.FixtureRequest) -> PointRendBackend:
    model = semantic() if request.param == "semantic" else build_instance(BOXES, 0)
    return PointRendBackend(model, SHA256, person_score=0.0)


def test_an_answer_has_the_size_and_range_it_promises(backend: PointRendBackend) -> None:
    for size in ((90, 70), (33, 200), (1, 1), (5, 900)):
        (found,) = backend.soft([photo(*size)], 1.0)
        assert found.probability.shape == size
        assert found.probability.dtype == np.float32
        assert 0 <= found.probability.min() <= found.probability.max() <= 1


def test_an_answer_does_not_depend_on_the_other_images_of_the_call(backend: PointRendBackend) -> None:
    images = [photo(90, 70, 1), photo(64, 64, 2), photo(90, 70, 3), photo(50, 120, 4)]
    together = backend.soft(images, 1.0)
    backwards = backend.soft(images[::-1], 1.0)[::-1]
    for image, found, again in zip(images, together, backwards, strict=True):
        (alone,) = backend.soft([image], 1.0)
        assert np.array_equal(alone.probability, found.probability)
        assert np.array_equal(again.probability, found.probability)
        assert alone.persons == found.persons == again.persons
    assert backend.soft([], 1.0) == []


def test_a_semantic_model_knows_no_persons_and_an_instance_model_lists_them_by_falling_score() -> None:
    (without,) = PointRendBackend(semantic(), SHA256).soft([photo(64, 64)], 1.0)
    assert without.persons is None
    (found,) = PointRendBackend(build_instance(BOXES, 0), SHA256, person_score=0.0).soft([photo(60, 80)], 1.0)
    assert found.persons
    scores = [p.score for p in found.persons]
    assert scores == sorted(scores, reverse=True)
    for x0, y0, x1, y1 in (p.box for p in found.persons):
        assert 0 <= x0 < x1 <= 80
        assert 0 <= y0 < y1 <= 60


def test_a_person_below_the_least_score_is_left_out() -> None:
    model, image = build_instance(BOXES, 0), photo(60, 80)
    (all_of_them,) = PointRendBackend(model, SHA256, person_score=0.0).soft([image], 1.0)
    assert all_of_them.persons
    least = all_of_them.persons[0].score
    (best,) = PointRendBackend(model, SHA256, person_score=least).soft([image], 1.0)
    assert best.persons == tuple(p for p in all_of_them.persons if p.score >= least)
    (none,) = PointRendBackend(model, SHA256, person_score=1.0).soft([image], 1.0)
    assert none.persons == ()
    assert not none.probability.any()


def test_the_scale_is_that_of_the_networks_input() -> None:
    image = photo(90, 70)
    (half,) = PointRendBackend(semantic(), SHA256).soft([image], 0.5)
    small = semantic()
    small.config = replace(TINY, min_size_test=32, max_size_test=64)
    (same,) = PointRendBackend(small, SHA256).soft([image], 1.0)
    assert np.array_equal(half.probability, same.probability)


def test_a_backend_answers_as_the_network_it_was_made_of() -> None:
    model = semantic().eval()
    for image in (photo(90, 70), photo(64, 96)):
        (found,) = PointRendBackend(model, SHA256).soft([image], 1.0)
        assert np.abs(found.probability - probabilities(model, [image])[0]).max() < 1e-3


def test_a_backend_leaves_its_network_as_it_was() -> None:
    model = semantic().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    PointRendBackend(model, SHA256).soft([photo(64, 64)], 1.0)
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("tile", [0, 4])
def test_bfloat16_moves_few_pixels_of_a_mask(monkeypatch: pytest.MonkeyPatch, tile: int) -> None:
    monkeypatch.setattr(fuse, "_WIDE", 32)
    monkeypatch.setattr(pointrend, "_tile", lambda *_: tile)
    model = build(replace(TINY, fpn_out=32, subdivision_steps=0), 0).eval()
    image = render(draw_scene(0, 0), 0.0, height_width=(96, 128))[0]
    with torch.no_grad():
        logits = model(pad([normalise(resize(image, (64, 85)), TINY)]))
    bias = model.sem_seg_head.coarse_sem_seg_head.predictor.bias
    assert bias is not None
    bias.data[0] += (logits[:, 1] - logits[:, 0]).median()
    (exact,) = PointRendBackend(model, SHA256).soft([image], 1.0)
    (rounded,) = PointRendBackend(model, SHA256, precision=torch.bfloat16).soft([image], 1.0)
    differ = (exact.probability >= 0.5) != (rounded.probability >= 0.5)
    assert 0.01 < (exact.probability >= 0.5).mean() < 0.99
    assert differ.mean() < 0.03
    assert not np.array_equal(exact.probability, rounded.probability)


@given(sizes=st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), max_size=12))
def test_only_images_of_one_network_size_share_a_batch_and_each_is_in_one(sizes: list[tuple[int, int]]) -> None:
    batches = same_size(sizes)
    assert sorted(i for batch in batches for i in batch) == list(range(len(sizes)))
    assert [len({sizes[i] for i in batch}) for batch in batches] == [1] * len(set(sizes))


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("No working C++ compiler found\nin a long text")

    monkeypatch.setattr(torch, "compile", fail)
    with pytest.raises(TeacherError, match=r"no working compiler on cpu: No working C\+\+ compiler found$"):
        PointRendBackend(semantic(), SHA256, compiled=True)


@pytest.mark.slow
def test_a_compiled_network_answers_the_same_at_every_size_and_is_not_compiled_for_each() -> None:
    plain = PointRendBackend(semantic(), SHA256)
    try:
        compiled = PointRendBackend(semantic(), SHA256, compiled=True)
    except TeacherError as error:
        pytest.skip(str(error))
    torch._dynamo.reset()
    graphs = []
    for size in ((70, 90), (128, 64), (64, 100), (50, 120), (64, 128)):
        image = photo(*size)
        (found,), (wanted,) = compiled.soft([image], 1.0), plain.soft([image], 1.0)
        assert np.abs(found.probability - wanted.probability).max() < 1e-3
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs[0] > 0
    assert graphs[1] == graphs[-1]
