"""What Detectron2 is told and given, and what is read from its answers; where it is installed, that it agrees with us.

Without it, its side is played by what the real one answered once (`Recorded`): the input must be the recorded one,
and the recorded output must become the recorded masks.
"""

import importlib.util
import json
import sys
from dataclasses import asdict, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from evaluation.masks import iou
from teachers.backend import load_model
from teachers.checkpoint import CheckpointError, load_state
from teachers.detectron2 import (
    Detectron2Backend,
    Detectron2Config,
    flat,
    kind_of,
    load_detectron2,
    merged,
    options,
    read_yaml,
)
from teachers.infer import infer_config, person_classes
from teachers.instance import InstanceConfig
from teachers.pointrend import PointRendBackend
from teachers.semantic import SemanticConfig
from teachers.teacher import TeacherError

CASES = ("sem_r50_c19", "sem_r50_c2_each", "inst_r50_coco")


def pairs(keys: list[Any]) -> dict[str, Any]:
    assert len(keys) % 2 == 0
    assert len(set(keys[::2])) == len(keys) // 2
    return dict(zip(keys[::2], keys[1::2], strict=True))


def manifest(goldens: Path, case: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((goldens / "pointrend" / "manifest.json").read_text())[case]
    return found


def weights(goldens: Path, case: str, folder: Path) -> Path:
    """The recorded weights as a `.pth`, which the loader reads."""
    path = folder / f"{case}.pth"
    with np.load(goldens / "pointrend" / f"{case}_weights.npz") as file:
        torch.save({k: torch.from_numpy(file[k].astype(np.float32)) for k in file.files}, path)
    return path


# --- Keys and values ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_an_architecture_becomes_the_keys_that_the_reference_was_built_with(goldens: Path, case: str) -> None:
    golden = manifest(goldens, case)
    found = pairs(options(golden["kind"], golden["arch"]))
    wanted = {k: v for k, v in pairs(golden["d2_opts"]).items() if "TRAIN" not in k}
    assert wanted
    assert {k: found.get(k) for k in wanted} == wanted


@pytest.mark.parametrize("case", CASES)
def test_the_weights_alone_imply_the_keys_that_decide_their_shapes(goldens: Path, tmp_path: Path, case: str) -> None:
    golden = manifest(goldens, case)
    config = infer_config(load_state(weights(goldens, case, tmp_path)))
    assert config.architecture == golden["kind"]
    found = pairs(options(config.architecture, asdict(config)))
    free = ("TRAIN", "SUBDIVISION_NUM_POINTS", "_SIZE_TEST", "DETECTIONS_PER_IMAGE")
    wanted = {k: v for k, v in pairs(golden["d2_opts"]).items() if not any(name in k for name in free)}
    assert {k: found.get(k) for k in wanted} == wanted


@pytest.mark.parametrize("config", [SemanticConfig, InstanceConfig])
def test_every_setting_of_ours_reaches_detectron2_except_what_is_read_from_its_answer(config: Any) -> None:
    default = asdict(config())
    for field in fields(config):
        changed = default | {field.name: "changed"}
        same = options(config.architecture, changed) == options(config.architecture, default)
        assert same == (field.name == "person_classes")
    with pytest.raises(KeyError, match="unknown"):
        options(config.architecture, {"unknown": 1})


def test_the_zoo_s_architectures_get_the_keys_of_their_published_configs() -> None:
    semantic = pairs(options("semantic", asdict(SemanticConfig(depth=101, num_classes=19, person_classes=(11,)))))
    assert semantic["MODEL.META_ARCHITECTURE"] == "SemanticSegmentor"
    assert semantic["MODEL.SEM_SEG_HEAD.NAME"] == "PointRendSemSegHead"
    assert semantic["MODEL.SEM_SEG_HEAD.NUM_CLASSES"] == semantic["MODEL.POINT_HEAD.NUM_CLASSES"] == 19
    assert (semantic["INPUT.MIN_SIZE_TEST"], semantic["INPUT.MAX_SIZE_TEST"]) == (1024, 2048)
    assert semantic["MODEL.POINT_HEAD.COARSE_PRED_EACH_LAYER"] is False
    found = pairs(options("instance", asdict(InstanceConfig())))
    assert found["MODEL.ANCHOR_GENERATOR.SIZES"] == [[32], [64], [128], [256], [512]]
    assert found["MODEL.ROI_MASK_HEAD.NAME"] == "PointRendMaskHead"
    assert found["MODEL.ROI_HEADS.NUM_CLASSES"] == found["MODEL.POINT_HEAD.NUM_CLASSES"] == 80
    assert (found["INPUT.MIN_SIZE_TEST"], found["INPUT.MAX_SIZE_TEST"]) == (800, 1333)
    assert found["MODEL.POINT_HEAD.SUBDIVISION_STEPS"] == 5


def test_a_tree_becomes_keys_without_the_two_that_are_ours() -> None:
    tree = {"MODEL": {"WEIGHTS": "x", "DEVICE": "cuda", "RPN": {"IN": ["p2"]}, "EMPTY": {}}, "VERSION": 2}
    assert flat(tree) == ["MODEL.RPN.IN", ["p2"], "VERSION", 2]


def test_a_section_is_merged_and_a_value_replaced() -> None:
    base = {"A": {"X": 1, "Y": {"Z": 2}}, "B": [1]}
    assert merged(base, {"A": {"Y": {"W": 3}, "X": 9}, "B": [2, 3]}) == {
        "A": {"X": 9, "Y": {"Z": 2, "W": 3}},
        "B": [2, 3],
    }
    assert base == {"A": {"X": 1, "Y": {"Z": 2}}, "B": [1]}


@pytest.mark.parametrize(
    ("kind", "classes", "riders", "wanted"),
    [
        ("semantic", 19, False, (11,)),
        ("semantic", 19, True, (11, 12)),
        ("semantic", 2, True, (1,)),
        ("instance", 8, True, (0, 1)),
        ("instance", 8, False, (0,)),
        ("instance", 80, True, (0,)),
    ],
)
def test_persons_are_the_classes_of_their_data_set(
    kind: Any, classes: int, riders: bool, wanted: tuple[int, ...]
) -> None:
    assert person_classes(kind, classes, riders=riders) == wanted


def test_only_the_two_kinds_of_pointrend_are_run() -> None:
    assert (kind_of("SemanticSegmentor"), kind_of("GeneralizedRCNN")) == ("semantic", "instance")
    with pytest.raises(TeacherError, match="must be one of SemanticSegmentor, GeneralizedRCNN, got 'PanopticFPN'"):
        kind_of("PanopticFPN")


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (("INPUT.MIN_SIZE_TEST",), "keys and values in turn, got 1 texts"),
        (("_BASE_", "x.yaml"), "must name keys like INPUT.MIN_SIZE_TEST, got '_BASE_'"),
        (("min_size", "2"), "must name keys"),
        (("MODEL.WEIGHTS", "x.pkl"), "must not set MODEL.WEIGHTS"),
        (("MODEL.DEVICE", "cuda"), "must not set MODEL.DEVICE"),
    ],
)
def test_impossible_options_are_refused(opts: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Detectron2Config(opts=opts)


# --- YAML --------------------------------------------------------------------------------------------------------

BASE = """
MODEL:
  META_ARCHITECTURE: "GeneralizedRCNN"
  RPN: {PRE_NMS_TOPK_TEST: 1000, IN_FEATURES: ["p2", "p3"]}
SOLVER:
  STEPS: (60000, 80000)
"""
LEAF = """
_BASE_: %s
MODEL:
  MASK_ON: true
  RPN: {PRE_NMS_TOPK_TEST: 500}
INPUT: {MIN_SIZE_TEST: 1024}
"""
TREE = {
    "MODEL": {
        "META_ARCHITECTURE": "GeneralizedRCNN",
        "MASK_ON": True,
        "RPN": {"PRE_NMS_TOPK_TEST": 500, "IN_FEATURES": ["p2", "p3"]},
    },
    "SOLVER": {"STEPS": "(60000, 80000)"},
    "INPUT": {"MIN_SIZE_TEST": 1024},
}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder of configs beside Detectron2's packaged ones and a secret that is neither's."""
    for name in ("mine/below", "package/configs/COCO"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "secret.yaml").write_text("MODEL: {SECRET: 1}")
    (tmp_path / "package" / "configs" / "Base-RCNN-FPN.yaml").write_text(BASE)
    return tmp_path / "mine"


@pytest.mark.parametrize("base", ["base.yaml", "below/base.yaml", "./below/../base.yaml"])
def test_a_base_in_the_folder_or_below_is_merged_under_the_file(place: Path, base: str) -> None:
    (place / base).write_text(BASE)
    (place / "leaf.yaml").write_text(LEAF % base)
    assert read_yaml(place / "leaf.yaml") == TREE


def test_bases_may_have_bases_up_to_the_folder_of_the_first_file(place: Path) -> None:
    (place / "base.yaml").write_text(BASE)
    (place / "below" / "middle.yaml").write_text("_BASE_: ../base.yaml\nMODEL: {MASK_ON: false}")
    (place / "leaf.yaml").write_text(LEAF % "below/middle.yaml")
    assert read_yaml(place / "leaf.yaml") == TREE


@pytest.mark.parametrize("base", ["../../../../configs/Base-RCNN-FPN.yaml", "../package/configs/Base-RCNN-FPN.yaml"])
def test_a_base_of_the_pointrend_project_is_found_in_the_packaged_configs(place: Path, base: str) -> None:
    (place / "leaf.yaml").write_text(LEAF % base)
    assert read_yaml(place / "leaf.yaml", place.parent / "package" / "configs") == TREE
    with pytest.raises(TeacherError, match=r"leaf\.yaml: its _BASE_ must be a file below .*mine, and .* is none"):
        read_yaml(place / "leaf.yaml")


@pytest.mark.parametrize(
    "base",
    ["../secret.yaml", "../package/configs/../../secret.yaml", "configs/../../../secret.yaml", "absent.yaml",
     "below", "link.yaml", '"\\0"', "x" * 5000],
)  # fmt: skip
def test_a_base_anywhere_else_is_refused(place: Path, base: str) -> None:
    (place / "link.yaml").symlink_to(place.parent / "secret.yaml")
    (place / "leaf.yaml").write_text(LEAF % base)
    with pytest.raises(TeacherError, match=r"leaf\.yaml: its _BASE_ must be a file below"):
        read_yaml(place / "leaf.yaml", place.parent / "package" / "configs")


@pytest.mark.parametrize("base", ["/etc/passwd", "~/x.yaml", "https://example.org/x.yaml", "[1]", "file:///x.yaml"])
def test_a_base_that_is_no_relative_path_is_refused(place: Path, base: str) -> None:
    (place / "leaf.yaml").write_text(LEAF % base)
    with pytest.raises(TeacherError, match="_BASE_ must be a relative path, got"):
        read_yaml(place / "leaf.yaml")


def test_bases_in_a_circle_are_refused(place: Path) -> None:
    (place / "a.yaml").write_text("_BASE_: b.yaml")
    (place / "b.yaml").write_text("_BASE_: a.yaml")
    with pytest.raises(TeacherError, match="perhaps in a circle"):
        read_yaml(place / "a.yaml")


def test_a_yaml_file_runs_nothing(place: Path) -> None:
    witness = place / "witness"
    for tag in ("!!python/object/apply:os.mkdir", "!!python/object/new:os.mkdir", "!!python/name:os.mkdir"):
        (place / "evil.yaml").write_text(f'MODEL: {tag} ["{witness}"]')
        with pytest.raises(TeacherError, match=r"evil\.yaml: not a plain YAML file, nothing was run"):
            read_yaml(place / "evil.yaml")
    assert not witness.exists()


LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1", "must hold sections, got list"),
        ("", "must hold sections, got NoneType"),
        ("MODEL: {1: 2}", "keys must be text, got 1"),
        ("A: [{2: 3}]", "keys must be text, got 2"),
        ("A: {", "not a plain YAML file"),
        ("A: \x00", "not a plain YAML file"),
        ("A: &a [*a]", "more than 10000 values"),
        ("[" * 5000, "not a plain YAML file"),
        (LAUGHS, "more than 10000 values"),
        ("VERSION: 1", "must be of VERSION 2, got 1"),
        ("#" * (1 << 20) + "\n", "has 1048577 bytes"),
    ],
    ids=lambda text: text[:12],
)
def test_a_file_that_is_no_config_is_refused_by_name(place: Path, text: str, message: str) -> None:
    (place / "x.yaml").write_text(text)
    with pytest.raises(TeacherError, match=rf"x\.yaml: .*{message}"):
        read_yaml(place / "x.yaml")


def test_an_absent_config_is_refused_by_name(place: Path) -> None:
    with pytest.raises(TeacherError, match=r"absent\.yaml: cannot be read: No such file"):
        read_yaml(place / "absent.yaml")


# --- Without Detectron2 ------------------------------------------------------------------------------------------


def test_where_it_is_not_installed_that_is_said_with_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("detectron2") is not None:
        monkeypatch.setitem(sys.modules, "detectron2.model_zoo", None)
    with pytest.raises(
        TeacherError, match=r"needs Detectron2, which is not installed .*: install it .*or write backend"
    ):
        load_detectron2(tmp_path / "x.pkl", Detectron2Config(), device="cpu", person_score=0.5, riders=False)


class Recorded:
    """A model of Detectron2 that was given `inputs` once, and answered `outputs`."""

    def __init__(self, inputs: list[NDArray[np.uint8]], outputs: list[Any]) -> None:
        self.record = list(zip(inputs, outputs, strict=True))

    def eval(self) -> "Recorded":
        return self

    def __call__(self, batch: list[dict[str, Any]]) -> list[Any]:
        (given,) = batch
        wanted, output = self.record.pop(0)
        assert given["image"].dtype == torch.float32
        assert np.array_equal(given["image"].numpy(), wanted.transpose(2, 0, 1))
        return [output]

    def inference(self, batch: list[dict[str, Any]], *, do_postprocess: bool) -> list[Any]:
        assert not do_postprocess
        return self(batch)


class Instances(SimpleNamespace):
    """Detectron2's container, as far as it is read."""

    def has(self, name: str) -> bool:
        return hasattr(self, name)


def described(golden: dict[str, Any], format: str = "BGR") -> Any:  # noqa: A002
    """What is read of a configuration."""
    arch = golden["arch"]
    heads = SimpleNamespace(NUM_CLASSES=arch["num_classes"])
    name = "SemanticSegmentor" if golden["kind"] == "semantic" else "GeneralizedRCNN"
    return SimpleNamespace(
        MODEL=SimpleNamespace(META_ARCHITECTURE=name, SEM_SEG_HEAD=heads, ROI_HEADS=heads),
        INPUT=SimpleNamespace(MIN_SIZE_TEST=arch["min_size_test"], MAX_SIZE_TEST=arch["max_size_test"], FORMAT=format),
    )


def rgb(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(image[:, :, ::-1])


def test_recorded_logits_become_the_recorded_person_probabilities(goldens: Path) -> None:
    golden = manifest(goldens, "sem_r50_c2_each")
    with np.load(goldens / "pointrend" / "sem_r50_c2_each.npz") as file:
        answers = [{"sem_seg": torch.from_numpy(file[f"final_logits{j}"])} for j in range(2)]
        model = Recorded([file[f"resized{j}"] for j in range(2)], answers)
        backend = Detectron2Backend(model, described(golden), "0" * 64, person_score=0.5, riders=False)
        found = backend.soft([rgb(file[f"image{j}"]) for j in range(2)], 1.0)
        for j, soft in enumerate(found):
            np.testing.assert_allclose(soft.probability, file[f"person_prob{j}"], atol=1e-6)
            assert np.array_equal(soft.probability >= 0.5, file[f"person_mask{j}"].astype(bool))
            assert soft.persons is None
    assert backend.id == "detectron2-semantic-000000000000"


def test_a_model_of_rgb_gets_rgb_and_a_scale_changes_the_size_it_sees(goldens: Path) -> None:
    golden = manifest(goldens, "sem_r50_c2_each")
    image = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    answer = {"sem_seg": torch.zeros(2, 128, 128)}
    model = Recorded([image], [answer])
    backend = Detectron2Backend(model, described(golden, "RGB"), "0" * 64, person_score=0.5, riders=False)
    (found,) = backend.soft([image], 2.0)  # 64 x 2: the image's own size
    assert (found.probability == 0.5).all()


def test_recorded_instances_become_the_recorded_persons_and_their_union(goldens: Path) -> None:
    golden = manifest(goldens, "inst_r50_coco")
    with np.load(goldens / "pointrend" / "inst_r50_coco.npz") as file:
        answer = Instances(
            pred_boxes=SimpleNamespace(tensor=torch.from_numpy(file["net_boxes0"])),
            scores=torch.from_numpy(file["net_scores0"]),
            pred_classes=torch.from_numpy(file["net_classes0"].astype(np.int64)),
            pred_masks=torch.from_numpy(file["mask_prob_step3_u8"].astype(np.float32) / 255)[:, None],
        )
        model = Recorded([file["resized0"]] * 2, [answer] * 2)
        backend = Detectron2Backend(model, described(golden), "0" * 64, person_score=0.5, riders=False)
        (found,) = backend.soft([rgb(file["image0"])], 1.0)
        union = file["person_union0"].astype(bool)
        assert iou(found.probability >= 0.5, union) > 0.995  # the recorded masks are rounded to 1/255
        assert found.persons is not None
        persons = file["classes0"] == golden["person_class"]
        np.testing.assert_allclose([p.box for p in found.persons], file["boxes0"][persons], atol=1e-4)
        np.testing.assert_allclose([p.score for p in found.persons], file["scores0"][persons], atol=1e-6)
        backend.person_score = float(file["scores0"][persons].max())
        (one,) = backend.soft([rgb(file["image0"])], 1.0)
        assert one.persons == found.persons[:1]


def test_an_image_without_detections_has_no_person(goldens: Path) -> None:
    golden = manifest(goldens, "inst_r50_coco")
    nothing = Instances(
        pred_boxes=SimpleNamespace(tensor=torch.zeros(0, 4)),
        scores=torch.zeros(0),
        pred_classes=torch.zeros(0, dtype=torch.int64),
    )
    image = np.zeros((128, 128, 3), np.uint8)
    backend = Detectron2Backend(
        Recorded([image], [nothing]), described(golden), "0" * 64, person_score=0.5, riders=True
    )
    (found,) = backend.soft([image], 1.0)
    assert not found.probability.any()
    assert found.persons == ()


def test_a_configuration_without_an_input_size_is_refused(goldens: Path) -> None:
    cfg = described(manifest(goldens, "sem_r50_c19"))
    cfg.INPUT.MIN_SIZE_TEST = 0
    with pytest.raises(TeacherError, match=r"MIN_SIZE_TEST and MAX_SIZE_TEST must be >= 1, got 0, 160"):
        Detectron2Backend(Recorded([], []), cfg, "0" * 64, person_score=0.5, riders=False)


# --- With Detectron2 ---------------------------------------------------------------------------------------------


def told(golden: dict[str, Any]) -> tuple[str, ...]:
    """The reference's keys and values as text."""
    keys = [str(item) for item in golden["d2_opts"]]
    return tuple(item for pair in zip(keys[::2], keys[1::2], strict=True) for item in pair)


@pytest.mark.parametrize("case", CASES)
def test_detectron2_and_our_pointrend_agree_on_the_golden_weights(goldens: Path, tmp_path: Path, case: str) -> None:
    pytest.importorskip("detectron2")
    golden, path = manifest(goldens, case), weights(goldens, case, tmp_path)
    theirs = load_detectron2(path, Detectron2Config(opts=told(golden)), device="cpu", person_score=0.5, riders=False)
    model, _ = load_model(path)
    free = ("subdivision_num_points", "min_size_test", "max_size_test", "detections_per_image")
    values = asdict(model.config) | {k: golden["arch"][k] for k in free if k in golden["arch"]}
    model.config = type(model.config)(**values)
    ours = PointRendBackend(model, "0" * 64)
    with np.load(goldens / "pointrend" / f"{case}.npz") as file:
        image = rgb(file["image0"])
    (a,), (b,) = theirs.soft([image], 1.0), ours.soft([image], 1.0)
    assert np.count_nonzero((a.probability >= 0.5) != (b.probability >= 0.5)) <= 0.002 * a.probability.size
    assert np.quantile(np.abs(a.probability - b.probability), 0.998) < 5e-3
    assert (a.persons is None) == (b.persons is None)
    if a.persons is not None and b.persons is not None:
        np.testing.assert_allclose([p.box for p in a.persons], [p.box for p in b.persons], atol=1e-2)
        np.testing.assert_allclose([p.score for p in a.persons], [p.score for p in b.persons], atol=1e-3)


def test_detectron2_refuses_weights_that_do_not_fit(goldens: Path, tmp_path: Path) -> None:
    pytest.importorskip("detectron2")
    path = weights(goldens, "sem_r50_c19", tmp_path)
    config = Detectron2Config(opts=("MODEL.RESNETS.DEPTH", "101"))
    with pytest.raises(CheckpointError, match=r"sem_r50_c19\.pth: .*missing: backbone\.bottom_up"):
        load_detectron2(path, config, device="cpu", person_score=0.5, riders=False)
    with pytest.raises(TeacherError, match="Detectron2 refuses its configuration"):
        load_detectron2(
            path, Detectron2Config(opts=("MODEL.NOTHING", "1")), device="cpu", person_score=0.5, riders=False
        )
