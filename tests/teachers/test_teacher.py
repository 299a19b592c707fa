"""A teacher's answer depends on the image and the file of weights, and on nothing else."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from teachers.checkpoint import CheckpointError, load_state, save_checkpoint, sha256_file
from teachers.semantic import SemanticConfig, build
from teachers.teacher import PointRendTeacher, TeacherError, load_teacher, same_size, summarise

TINY = SemanticConfig(
    depth=18, stem_out=8, res2_out=8, norm="BN", fpn_out=8, sem_convs_dim=32, point_fc_dim=8,
    subdivision_num_points=300, min_size_test=64, max_size_test=128,
)  # fmt: skip


def photo(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = build(TINY, 0)
    model.sem_seg_head.point_head.predictor.weight.data.mul_(100)
    path = tmp_path_factory.mktemp("weights") / "teacher.safetensors"
    save_checkpoint(path, model, TINY, {"step": 0})
    return path


def test_a_prediction_has_the_size_and_range_it_promises(path: Path) -> None:
    teacher = load_teacher(path)
    for size in ((90, 70), (33, 200), (1, 1), (5, 900)):
        (found,) = teacher.predict([photo(*size)])
        assert found.probability.shape == size
        assert found.probability.dtype == np.float32
        assert 0 <= found.probability.min() <= found.probability.max() <= 1
        assert 0.5 <= found.label_confidence <= 1
        assert 0 <= found.boundary_uncertainty <= 1


def test_an_answer_depends_neither_on_its_batch_nor_on_when_it_is_asked(path: Path) -> None:
    teacher = load_teacher(path)
    images = [photo(90, 70, 1), photo(64, 64, 2), photo(90, 70, 3), photo(50, 120, 4)]
    together = teacher.predict(images)
    for image, found in zip(images, together, strict=True):
        (alone,) = load_teacher(path).predict([image])
        assert np.array_equal(alone.probability, found.probability)
        assert alone.label_confidence == found.label_confidence
    backwards = teacher.predict(images[::-1])[::-1]
    assert all(np.array_equal(a.probability, b.probability) for a, b in zip(together, backwards, strict=True))


def test_no_image_gives_no_prediction(path: Path) -> None:
    assert load_teacher(path).predict([]) == []


def test_a_teacher_is_named_after_its_file(path: Path) -> None:
    teacher = load_teacher(path)
    assert teacher.sha256 == sha256_file(path)
    assert teacher.id == f"pointrend-semantic-r18-{teacher.sha256[:12]}"


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)]
)
def test_what_is_no_image_is_refused_by_its_index(path: Path, image: Any) -> None:
    with pytest.raises(TeacherError, match=r"image 1 must be \(H, W, 3\) uint8"):
        load_teacher(path).predict([photo(8, 8), image])


def test_an_output_that_is_not_finite_is_refused_by_the_index_of_its_image() -> None:
    model = build(TINY, 0)
    model.sem_seg_head.coarse_sem_seg_head.predictor.weight.data.fill_(torch.nan)
    with pytest.raises(TeacherError, match=r"image 0: .* not finite"):
        PointRendTeacher(model, "0" * 64).predict([photo(40, 40)])


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    model = build(TINY, 0)
    model.backbone.bottom_up.stem.conv1.weight.data[0, 0, 0, 0] = torch.inf
    save_checkpoint(tmp_path / "a.safetensors", model, TINY, {})
    with pytest.raises(CheckpointError, match=r"a\.safetensors.*not finite: backbone\.bottom_up\.stem\.conv1\.weight"):
        load_teacher(tmp_path / "a.safetensors")


def test_a_truncated_or_foreign_file_is_refused(path: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="not a readable safetensors"):
        load_teacher(broken)
    save_checkpoint(broken, torch.nn.Linear(2, 2), TINY, {})
    with pytest.raises(CheckpointError, match=r"missing: .*surplus: bias, weight"):
        load_teacher(broken)


def test_a_zoo_file_is_a_teacher(goldens: Path) -> None:
    path = goldens / "pointrend" / "zoo_format" / "model_final_c7f38d.pkl"
    (found,) = load_teacher(path).predict([photo(20, 30)])
    assert found.probability.shape == (20, 30)


def test_riders_count_as_people_where_they_are_asked_for(tmp_path: Path) -> None:
    config = replace(TINY, num_classes=19, person_classes=(11,))
    save_checkpoint(tmp_path / "a.safetensors", build(config, 0), config, {})
    image = photo(40, 50)
    (plain,), (both,) = (load_teacher(tmp_path / "a.safetensors", riders=r).predict([image]) for r in (False, True))
    assert (both.probability >= plain.probability).all()
    assert (both.probability > plain.probability).any()
    assert len(load_state(tmp_path / "a.safetensors")) > 100


def test_where_there_is_no_person_confidence_is_that_of_the_whole_image_and_no_boundary_is_unsure() -> None:
    found = summarise(np.full((6, 5), 0.25, np.float32))
    assert (found.label_confidence, found.boundary_uncertainty) == (0.75, 0.0)
    assert summarise(np.full((6, 5), 0.75, np.float32)).boundary_uncertainty == 0.0


def test_scores_look_at_the_person_and_its_edge_and_not_at_far_background() -> None:
    p = np.full((100, 100), 0.1, np.float32)
    p[:20, :20] = 0.875
    before = summarise(p)
    p[60:, 60:] = 0.45  # far away, unsure, no person
    assert summarise(p).label_confidence == before.label_confidence
    assert summarise(p).boundary_uncertainty == before.boundary_uncertainty
    assert before.boundary_uncertainty == pytest.approx(np.mean([0.2, 0.25]), abs=0.03)


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), height=st.integers(1, 30), width=st.integers(1, 30))
def test_scores_are_those_of_their_definition_and_survive_a_mirror(seed: int, height: int, width: int) -> None:
    p = np.random.default_rng(seed).random((height, width), dtype=np.float32)
    found, mirrored = summarise(p), summarise(np.ascontiguousarray(p[:, ::-1]))
    assert 0.5 <= found.label_confidence <= 1
    assert 0 <= found.boundary_uncertainty <= 1
    assert found.label_confidence == pytest.approx(mirrored.label_confidence, abs=1e-12)
    assert found.boundary_uncertainty == pytest.approx(mirrored.boundary_uncertainty, abs=1e-12)


@given(sizes=st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), max_size=12))
def test_only_images_of_one_size_share_a_batch_and_each_is_in_one(sizes: list[tuple[int, int]]) -> None:
    batches = same_size([np.zeros((*size, 3), np.uint8) for size in sizes])
    assert sorted(i for batch in batches for i in batch) == list(range(len(sizes)))
    assert [len({sizes[i] for i in batch}) for batch in batches] == [1] * len(set(sizes))


def test_a_file_that_claims_a_giant_network_is_refused_without_making_it(tmp_path: Path) -> None:
    giant = replace(TINY, res2_out=2**22, fpn_out=2**22)
    save_checkpoint(tmp_path / "a.safetensors", build(TINY, 0), giant, {})
    with pytest.raises(CheckpointError, match="wrong shape"):
        load_teacher(tmp_path / "a.safetensors")
