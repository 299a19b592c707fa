"""A teacher's answer depends on the image and the file of weights, and on nothing else; views are averaged."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from teachers.backend import TEACHERS, TeacherConfig, load_model, load_teacher
from teachers.checkpoint import CheckpointError, save_checkpoint
from teachers.instance import InstanceConfig, InstancePointRend, build_instance
from teachers.pointrend import PointRendBackend
from teachers.semantic import SemanticConfig, SemanticPointRend, build
from teachers.teacher import Labeller, Person, Soft, TeacherError, summarise
from training.files import sha256_file

TINY = SemanticConfig(
    depth=18, stem_out=8, res2_out=8, norm="BN", fpn_out=8, sem_convs_dim=32, point_fc_dim=8,
    subdivision_num_points=300, min_size_test=64, max_size_test=128,
)  # fmt: skip
BOXES = InstanceConfig(
    depth=18, stem_out=8, res2_out=8, norm="BN", fpn_out=8, box_fc_dim=16, mask_conv_dim=8, mask_fc_dim=16,
    point_fc_dim=8, num_classes=8, min_size_test=64, max_size_test=128, score_thresh_test=0.01,
)  # fmt: skip


def photo(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@dataclass
class Grey:
    """A backend that calls the first channel a probability, and lists one person at the brightest pixel's column."""

    power: float = 1.0
    id: str = "grey"
    sha256: str = "0" * 64

    def soft(self, images: Sequence[NDArray[np.uint8]], scale: float) -> list[Soft]:
        out = []
        for image in images:
            p = ((image[:, :, 0] / 255.0) ** (self.power * scale)).astype(np.float32)
            column = float(p.argmax() % p.shape[1])
            out.append(Soft(probability=p, persons=(Person(box=(column, 0, column + 1, 1), score=min(1.0, scale)),)))
        return out


@dataclass
class Constant:
    """A backend that answers one thing."""

    answer: NDArray[Any]
    id: str = "constant"
    sha256: str = "0" * 64

    def soft(self, images: Sequence[NDArray[np.uint8]], scale: float) -> list[Soft]:  # noqa: ARG002
        return [Soft(probability=self.answer) for _ in images]


# --- Views -------------------------------------------------------------------------------------------------------


def test_one_view_is_what_the_backend_says() -> None:
    image = photo(7, 9)
    (found,) = Labeller(backend=Grey()).predict([image])
    assert np.array_equal(found.probability, Grey().soft([image], 1.0)[0].probability)


@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), height=st.integers(1, 9), width=st.integers(1, 9))
def test_flipped_and_scaled_views_are_averaged(seed: int, height: int, width: int) -> None:
    image, scales = photo(height, width, seed), (0.5, 1.0, 1.5)
    (found,) = Labeller(backend=Grey(), flip=True, scales=scales).predict([image])
    views = [Grey().soft([image], scale)[0].probability for scale in scales]  # mirrored twice, each says it again
    np.testing.assert_allclose(found.probability, np.mean(views, axis=0), atol=1e-6)
    assert found.probability.dtype == np.float32
    assert found.probability.flags.c_contiguous


def test_a_mirrored_image_gets_the_mirrored_mask_where_both_are_seen(path: Path) -> None:
    teacher, image = load_teacher(path, TeacherConfig(flip=True)), photo(60, 80)
    (found,), (mirrored,) = teacher.predict([image]), teacher.predict([np.ascontiguousarray(image[:, ::-1])])
    assert np.array_equal(found.probability, mirrored.probability[:, ::-1])
    (once,) = load_teacher(path).predict([image])
    assert not np.array_equal(found.probability, once.probability)


def test_persons_are_those_of_the_first_view() -> None:
    image = np.zeros((3, 8, 3), np.uint8)
    image[1, 2] = 255
    (found,) = Labeller(backend=Grey(), flip=True, scales=(0.75, 1.0)).predict([image])
    assert found.persons == (Person(box=(2.0, 0, 3.0, 1), score=0.75),)


@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), temperature=st.floats(0.05, 20))
def test_temperature_moves_no_mask(seed: int, temperature: float) -> None:
    image = photo(6, 8, seed)
    (cold,) = Labeller(backend=Grey()).predict([image])
    (warm,) = Labeller(backend=Grey(), temperature=temperature).predict([image])
    assert np.array_equal(cold.probability >= 0.5, warm.probability >= 0.5)


# --- Refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)]
)
def test_what_is_no_image_is_refused_by_its_index(image: Any) -> None:
    with pytest.raises(TeacherError, match=r"image 1 must be \(H, W, 3\) uint8"):
        Labeller(backend=Grey()).predict([photo(8, 8), image])


@pytest.mark.parametrize(
    "answer",
    [
        np.full((4, 5), np.nan, np.float32), np.full((4, 5), 1.5, np.float32), np.full((4, 5), -0.1, np.float32),
        np.full((5, 4), 0.5, np.float32), np.full((4, 5), 0.5, np.float64),
    ],
)  # fmt: skip
def test_what_is_no_probability_is_refused(answer: NDArray[Any]) -> None:
    with pytest.raises(TeacherError, match=r"image 0: .*constant gave no probabilities"):
        Labeller(backend=Constant(answer)).predict([photo(4, 5)])


def test_an_output_that_is_not_finite_is_refused_by_the_index_of_its_image() -> None:
    model = build(TINY, 0)
    model.sem_seg_head.coarse_sem_seg_head.predictor.weight.data.fill_(torch.nan)
    with pytest.raises(TeacherError, match=r"image 0: .* not finite"):
        Labeller(backend=PointRendBackend(model, "0" * 64)).predict([photo(40, 40)])


# --- From a file -------------------------------------------------------------------------------------------------


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
        assert found.persons is None


def test_an_answer_depends_neither_on_its_batch_nor_on_when_it_is_asked(path: Path) -> None:
    teacher = load_teacher(path)
    images = [photo(90, 70, 1), photo(64, 64, 2), photo(90, 70, 3), photo(50, 120, 4)]
    together = teacher.predict(images)
    for image, found in zip(images, together, strict=True):
        (alone,) = load_teacher(path).predict([image])
        assert np.array_equal(alone.probability, found.probability)
        assert alone.label_confidence == found.label_confidence
    assert teacher.predict([]) == []


def test_a_teacher_is_named_after_its_file(path: Path) -> None:
    teacher = load_teacher(path)
    assert teacher.sha256 == sha256_file(path)
    assert teacher.id == f"pointrend-semantic-r18-{teacher.sha256[:12]}"


def test_a_model_comes_back_as_it_was_saved_with_its_temperature(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    for built, kind in ((build(TINY, 3), SemanticPointRend), (build_instance(BOXES, 3), InstancePointRend)):
        save_checkpoint(file, built, built.config, {"temperature": 1.75})
        model, temperature = load_model(file)
        assert isinstance(model, kind)
        assert temperature == 1.75
        assert model.config == built.config
        for key, value in built.state_dict().items():
            assert torch.equal(value, model.state_dict()[key])


def test_the_stored_temperature_is_used_unless_the_config_has_one(tmp_path: Path) -> None:
    file, model, image = tmp_path / "a.safetensors", build(TINY, 0), photo(40, 50)
    save_checkpoint(file, model, TINY, {"temperature": 4.0})
    stored, given_one = load_teacher(file), load_teacher(file, TeacherConfig(temperature=1.0))
    backend = PointRendBackend(model, sha256_file(file))
    for teacher, temperature in ((stored, 4.0), (given_one, 1.0)):
        (found,) = teacher.predict([image])
        (wanted,) = Labeller(backend=backend, temperature=temperature).predict([image])
        assert np.array_equal(found.probability, wanted.probability)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), 1e9, [1.0], "warm", None, True])
def test_an_impossible_stored_temperature_is_refused(tmp_path: Path, temperature: Any) -> None:
    save_checkpoint(tmp_path / "a.safetensors", build(TINY, 0), TINY, {"temperature": temperature})
    with pytest.raises(CheckpointError, match=r"a\.safetensors: its stored temperature must be a number > 0"):
        load_model(tmp_path / "a.safetensors")


def test_an_instance_teacher_lists_persons(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    save_checkpoint(file, build_instance(BOXES, 0), BOXES, {})
    teacher = load_teacher(file, TeacherConfig(person_score=0.0, riders=True))
    assert teacher.id.startswith("pointrend-instance-r18-")
    (found,) = teacher.predict([photo(60, 80)])
    assert found.persons is not None


def test_another_input_size_gives_the_answer_of_a_model_of_that_size(path: Path, tmp_path: Path) -> None:
    model, _ = load_model(path)
    config = replace(TINY, min_size_test=96, max_size_test=192)
    save_checkpoint(tmp_path / "b.safetensors", model, config, {})
    image = photo(60, 80)
    (found,) = load_teacher(path, TeacherConfig(min_size=96)).predict([image])
    (wanted,) = load_teacher(tmp_path / "b.safetensors").predict([image])
    assert np.array_equal(found.probability, wanted.probability)


def test_riders_count_as_people_where_they_are_asked_for(tmp_path: Path) -> None:
    config = replace(TINY, num_classes=19, person_classes=(11,))
    save_checkpoint(tmp_path / "a.safetensors", build(config, 0), config, {})
    image = photo(40, 50)
    (plain,), (both,) = (
        load_teacher(tmp_path / "a.safetensors", TeacherConfig(riders=r)).predict([image]) for r in (False, True)
    )
    assert (both.probability >= plain.probability).all()
    assert (both.probability > plain.probability).any()


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
    (found,) = load_teacher(path, TeacherConfig(person_classes=(1,))).predict([photo(20, 30)])
    assert found.probability.shape == (20, 30)


def test_a_file_that_claims_a_giant_network_is_refused_without_making_it(tmp_path: Path) -> None:
    giant = replace(TINY, res2_out=2**14, fpn_out=2**14)
    save_checkpoint(tmp_path / "a.safetensors", build(TINY, 0), giant, {})
    with pytest.raises(CheckpointError, match="wrong shape"):
        load_teacher(tmp_path / "a.safetensors")


# --- The configuration -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"person_score": 1.5}, r"person_score must be in \[0, 1\], got 1\.5"),
        ({"min_size": -1}, r"min_size must be 0 or in 33\.\.8192, got -1"),
        ({"min_size": 32}, r"min_size must be 0 or in 33\.\.8192, got 32"),
        ({"scales": ()}, "scales must be distinct factors"),
        ({"scales": (1.0, 1.0)}, "scales must be distinct factors"),
        ({"scales": (1.0, 20.0)}, "scales must be distinct factors"),
        ({"temperature": -1.0}, r"temperature must be in 0\.\.100"),
    ],
)
def test_an_impossible_configuration_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TeacherConfig(**values)


@pytest.mark.parametrize("device", ["abacus", "cuda:x", ""])
def test_a_device_that_is_none_is_refused(path: Path, device: str) -> None:
    with pytest.raises(TeacherError, match="is no device; write cpu, cuda, cuda:1 or auto"):
        load_teacher(path, TeacherConfig(device=device))


@pytest.mark.parametrize("device", ["meta", "mps", "xpu"])
def test_a_device_of_another_kind_is_refused(path: Path, device: str) -> None:
    with pytest.raises(TeacherError, match=f"teacher.device must be cpu, cuda, cuda:1 or auto, got '{device}'"):
        load_teacher(path, TeacherConfig(device=device))


def test_a_gpu_beyond_the_last_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(TeacherError, match=r"teacher\.device is 'cuda:2', but torch finds 2 GPUs here"):
        load_teacher(path, TeacherConfig(device="cuda:2"))


def test_an_input_beyond_the_largest_is_refused_by_the_name_in_the_config(path: Path) -> None:
    with pytest.raises(ValueError, match=r"^teacher\.min_size must be <= 4096 for this checkpoint, got 5000$"):
        load_teacher(path, TeacherConfig(min_size=5000))


@pytest.mark.parametrize("size", [(1, 1), (50, 50), (20, 5000)])
def test_the_smallest_view_of_any_image_has_an_answer(path: Path, size: tuple[int, int]) -> None:
    image = photo(*size)
    (found,) = load_teacher(path, TeacherConfig(scales=(0.1,))).predict([image])
    assert found.probability.shape == size


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_refused_and_auto_takes_the_cpu(path: Path) -> None:
    with pytest.raises(TeacherError, match="torch finds no GPU here"):
        load_teacher(path, TeacherConfig(device="cuda"))
    image = photo(30, 40)
    (found,), (wanted,) = (load_teacher(path, TeacherConfig(device=d)).predict([image]) for d in ("auto", "cpu"))
    assert np.array_equal(found.probability, wanted.probability)


def test_the_precision_is_that_of_the_config(path: Path) -> None:
    image = photo(64, 64)
    (exact,), (rounded,) = (
        load_teacher(path, TeacherConfig(precision=p)).predict([image])  # type: ignore[arg-type]
        for p in ("float32", "bfloat16")
    )
    assert not np.array_equal(exact.probability, rounded.probability)


def test_every_backend_of_the_config_has_a_loader() -> None:
    assert set(TEACHERS) == {"pointrend", "onnx", "detectron2"}


# --- Scores ------------------------------------------------------------------------------------------------------


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


def test_a_foreign_model_of_unknown_classes_must_be_told_which_are_persons(tmp_path: Path) -> None:
    model = build(replace(TINY, num_classes=5, norm="FrozenBN"), 0)
    torch.save(model.state_dict(), tmp_path / "five.pth")
    with pytest.raises(ValueError, match=r"knows 5 classes.*set teacher\.person_classes"):
        load_teacher(tmp_path / "five.pth")
    small = {"min_size": 64}
    one, other = (
        load_teacher(tmp_path / "five.pth", TeacherConfig(person_classes=classes, **small))  # type: ignore[arg-type]
        for classes in ((0,), (0, 1, 2, 3, 4))
    )
    assert one.predict([photo(40, 50)])[0].probability.max() < 1
    np.testing.assert_allclose(other.predict([photo(40, 50)])[0].probability, 1, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"riders": True}, "this one knows no riders"),
        ({"backend": "onnx", "min_size": 64}, r"teacher\.min_size is not for the backend onnx"),
        ({"backend": "onnx", "precision": "bfloat16"}, r"teacher\.precision is not for the backend onnx"),
        ({"backend": "detectron2", "compile": True}, r"teacher\.compile is not for the backend detectron2"),
    ],
)
def test_a_setting_that_would_do_nothing_is_refused(path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_teacher(path, TeacherConfig(**change))
