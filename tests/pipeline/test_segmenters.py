"""Laws of segmenters: models answer as they do elsewhere, masks of another program fit the clip frame by frame."""

import hashlib
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from manifests.mask import encode_mask, encode_soft
from pipeline.clips import Clip, ClipConfig, ClipFrame, find_clips, read_clip
from pipeline.config import Config
from pipeline.errors import InputError
from pipeline.segmenters import (
    PredictedMasks,
    Segmenter,
    StudentSegmenter,
    check_predictions,
    open_segmenter,
    segment,
)
from students.card import Card, card_values
from students.data import bucket_sizes, fit_image, nearest_bucket
from students.export_onnx import INPUT
from students.model import StudentConfig, build_student, load_student, save_student
from students.tracker import Tracker, TrackerConfig
from teachers.backend import TeacherConfig, load_teacher
from teachers.onnx import OnnxConfig
from tests.pipeline.clip_sets import drawn, film, png, put, write_frames
from tests.pipeline.test_label import draw_teacher
from tests.teachers.test_onnx import conv

FRAMES = drawn()
NANO = StudentConfig(channels=(8, 8, 8, 8, 8, 8), depths=(1, 1, 1, 1, 1), decoder=(8, 8, 8, 8))
FOUR = replace(NANO, in_channels=4)


@pytest.fixture
def clip(tmp_path: Path) -> Clip:
    write_frames(tmp_path / "clips", "set/walk", FRAMES)
    return find_clips(tmp_path / "clips")[0]


def answers(segmenter: Segmenter, clip: Clip) -> list[np.ndarray]:
    return [probability for _, probability in segment(segmenter, clip, read_clip(clip))]


def refusal(path: Path, clip: Clip, config: Config | None = None) -> str:
    with pytest.raises(InputError) as caught:
        answers(open_segmenter(path, config or Config()), clip)
    return str(caught.value)


def student(path: Path, config: StudentConfig = NANO, **metadata: str) -> Path:
    """A student that has learnt nothing, but whose answers differ, and which feels its prior if it has one."""
    network = build_student(config, 3)
    network.head.weight.data.mul_(100)
    if config.in_channels == 4:
        network.stem[0].weight.data[:, 3] = 0.5
    save_student(path, network, config, {"side": "128", **metadata})
    return path


def claimed(form: bytes) -> bytes:
    """An empty ONNX file that claims a format: a `metadata_props` of key and value."""
    pair = b"\x0a\x06format\x12" + bytes([len(form)]) + form
    return b"\x72" + bytes([len(pair)]) + pair


# Models ---------------------------------------------------------------------------------------------------------------


def test_a_student_sees_each_frame_once_at_its_own_size(tmp_path: Path, clip: Clip) -> None:
    path = student(tmp_path / "s.safetensors")
    found = answers(open_segmenter(path, Config()), clip)
    network, sizes = load_student(path), bucket_sizes(128)
    for probability, frame in zip(found, FRAMES, strict=True):
        fitted, (height, width) = fit_image(frame.pixels, nearest_bucket(48, 64, sizes))
        with torch.inference_mode():
            logits = network(torch.from_numpy(fitted.transpose(2, 0, 1)[None].copy()).float() / 255)[0, 0]
        assert (height, width) == (96, 128)
        inside = torch.sigmoid(logits)[:height, :width].reshape(48, 2, 64, 2).mean((1, 3)).numpy()
        np.testing.assert_allclose(probability, inside, atol=1e-5)
        assert probability.std() > 0


def by_hand(path: Path, clip: Clip, *, times: bool) -> list[np.ndarray]:
    """What the tracker says of a clip's frames."""
    network = load_student(path)
    tracker = Tracker(network, TrackerConfig(side=128))
    frames = list(read_clip(clip))
    micros = [round(frame.seconds * 1e6) if times and frame.seconds is not None else None for frame in frames]
    return [tracker.update(frame.image, time) for frame, time in zip(frames, micros, strict=True)]


def test_a_detect_with_mask_student_sees_its_mask_of_the_frame_before_and_forgets_the_clip_before(
    tmp_path: Path, clip: Clip
) -> None:
    path = student(tmp_path / "s.safetensors", FOUR)
    segmenter = open_segmenter(path, Config())
    assert isinstance(segmenter, StudentSegmenter)
    expected = by_hand(path, clip, times=False)
    for _ in range(2):
        starts = []
        for number, (frame, probability) in enumerate(segment(segmenter, clip, read_clip(clip))):
            np.testing.assert_allclose(probability, expected[number], atol=1e-3)
            starts.append(segmenter.started)
            alone = open_segmenter(path, Config())
            alone.reset(clip)
            assert (np.abs(alone(frame) - probability).max() > 1e-2) == (number > 0)
        assert starts == ["first", None, None, None]


def test_missing_frames_make_a_detect_with_mask_student_start_anew(tmp_path: Path, clip: Clip) -> None:
    segmenter = open_segmenter(student(tmp_path / "s.safetensors", FOUR), Config())
    assert isinstance(segmenter, StudentSegmenter)
    pixels = FRAMES[0].pixels

    def starts(given: list[tuple[float | None, bool]]) -> list[str | None]:
        frames = [
            ClipFrame(index=i, name=f"{i}", seconds=seconds, image=pixels, follows=follows)
            for i, (seconds, follows) in enumerate(given)
        ]
        return [segmenter.started for _ in segment(segmenter, clip, frames)]

    assert starts([(None, False), (None, True), (None, False)]) == ["first", None, "first"]
    assert starts([(0.0, False), (0.1, False), (0.5, False), (1.1, True)]) == ["first", None, None, "gap"]


def shipped(path: Path, config: StudentConfig, weights: list[float]) -> Path:
    """An ONNX file that says it is a student: a weighted sum of its input's channels."""
    name = INPUT[config.in_channels]
    conv = helper.make_node("Conv", [name, "w"], ["logits"])
    kernel = numpy_helper.from_array(np.array(weights, np.float32).reshape(1, -1, 1, 1), "w")
    ends = [
        helper.make_tensor_value_info(end, TensorProto.FLOAT, [1, channels, "h", "w"])
        for end, channels in ((name, len(weights)), ("logits", 1))
    ]
    graph = helper.make_graph([conv], "sum", ends[:1], ends[1:], [kernel])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, card_values(Card(side=128, config=config, precision="float32"), {}))
    return put(path, model.SerializeToString())


def test_an_exported_student_says_itself_how_it_is_run(tmp_path: Path, clip: Clip) -> None:
    settings = Config(teacher=TeacherConfig(onnx=OnnxConfig(channels="BGR", std=(1.0, 1.0, 1.0))))
    path = shipped(tmp_path / "s.onnx", NANO, [2.0, 0.0, 0.0])
    segmenter = open_segmenter(path, settings)
    assert segmenter.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    for probability, frame in zip(answers(segmenter, clip), FRAMES, strict=True):
        red = frame.pixels[:, :, 0] / 127.5
        assert np.abs(probability - 1 / (1 + np.exp(-red))).mean() < 0.01


def test_an_exported_detect_with_mask_student_remembers(tmp_path: Path, clip: Clip) -> None:
    segmenter = open_segmenter(shipped(tmp_path / "s.onnx", FOUR, [0.0, 0.0, 0.0, 4.0]), Config())
    expected = 0.5
    for probability in answers(segmenter, clip):
        np.testing.assert_allclose(probability, expected, atol=1e-6)
        expected = 1 / (1 + np.exp(-4 * expected))


def test_a_model_is_named_by_its_bytes_and_answers_with_the_same_bits_again(tmp_path: Path, clip: Clip) -> None:
    path = student(tmp_path / "s.safetensors")
    one, two = (open_segmenter(path, Config()) for _ in range(2))
    assert one.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert one.id == f"student-{one.sha256[:12]}"
    first = answers(one, clip)
    for again in (answers(one, clip), answers(two, clip)):
        for a, b in zip(first, again, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: student(p, side="x"), "must state the side, 64..4096, got 'x'"),
        (lambda p: student(p, FOUR, side="63"), "must state the side"),
        (lambda p: put(p, student(p).read_bytes()[:-8]), "s.safetensors"),
        (lambda p: put(p, b"rubbish"), "s.safetensors"),
        (lambda p: put(p.with_suffix(".onnx"), b"rubbish"), "s.onnx"),
        (lambda p: put(p.with_suffix(".onnx"), claimed(b"other-1")), "holds no network"),
        (lambda p: put(p.with_suffix(".onnx"), claimed(b"curate-student-9")), "ONNX Runtime cannot load it"),
        (lambda p: put(p.with_suffix(".pt2"), b"rubbish"), "s.pt2"),
        (lambda p: put(p.with_suffix(".ptl"), b"rubbish"), "s.ptl"),
    ],
)
def test_a_checkpoint_that_cannot_be_run_is_refused_by_name(
    make: Callable[[Path], Path], message: str, tmp_path: Path, clip: Clip
) -> None:
    made = make(tmp_path / "s.safetensors")
    path = made if made is not None else tmp_path / "s.safetensors"
    assert message in refusal(path, clip)


@pytest.mark.parametrize("config", [NANO, FOUR], ids=["RGB", "detect-with-mask"])
def test_a_student_with_weights_that_overflow_is_refused_at_the_frame(
    config: StudentConfig, tmp_path: Path, clip: Clip
) -> None:
    network = build_student(config, 3)
    for weights in network.parameters():
        weights.data.mul_(1e30)
    save_student(tmp_path / "s.safetensors", network, config, {"side": "128"})
    assert re.search("student-.*: frame 00000: .*must be finite", refusal(tmp_path / "s.safetensors", clip))


def test_a_teacher_answers_as_it_labels(tmp_path: Path, clip: Clip) -> None:
    path = tmp_path / "t.safetensors"
    digest = draw_teacher(path)
    for settings in (TeacherConfig(), TeacherConfig(flip=True)):
        segmenter = open_segmenter(path, Config(teacher=settings))
        assert segmenter.sha256 == digest
        expected = load_teacher(path, settings).predict([frame.pixels for frame in FRAMES])
        for probability, prediction in zip(answers(segmenter, clip), expected, strict=True):
            np.testing.assert_array_equal(probability, prediction.probability)


def test_an_onnx_model_is_run_as_the_config_says(tmp_path: Path, clip: Clip) -> None:
    path = conv(tmp_path / "m.onnx", [[0.0, 1.0, 0.0]], (48, 64))
    for channels, channel in (("RGB", 1), ("BGR", 1)):
        settings = TeacherConfig(backend="pointrend", onnx=OnnxConfig(channels=channels))  # type: ignore[arg-type]
        segmenter = open_segmenter(path, Config(teacher=settings))
        assert segmenter.id.startswith("onnx-")
        for probability, frame in zip(answers(segmenter, clip), FRAMES, strict=True):
            np.testing.assert_allclose(probability, frame.pixels[:, :, channel] / 255, atol=1e-6)


def test_an_onnx_model_that_is_not_what_the_config_says_is_refused(tmp_path: Path, clip: Clip) -> None:
    path = conv(tmp_path / "m.onnx", [[0.0, 300.0, 0.0]], (48, 64))
    assert re.search("m.onnx|onnx-", refusal(path, clip))


def test_a_path_without_anything_is_refused(tmp_path: Path, clip: Clip) -> None:
    assert "must be a checkpoint" in refusal(tmp_path / "none", clip)


class _Broken:
    id, sha256 = "broken", "0" * 64

    def __init__(self, probability: Any) -> None:
        self.probability = probability

    def reset(self, clip: Clip) -> None:
        assert clip.name == "set/walk"

    def __call__(self, frame: ClipFrame) -> Any:
        assert frame.index == 0
        return self.probability

    def finish(self) -> None:
        raise AssertionError


@pytest.mark.parametrize(
    ("probability", "message"),
    [
        (np.zeros((48, 63), np.float32), "must give"),
        (np.zeros((48, 64)), "must give"),
        (np.full((48, 64), np.nan, np.float32), "not finite"),
        (np.full((48, 64), 1.01, np.float32), r"in \[0, 1\]"),
        (np.full((48, 64), -0.01, np.float32), r"in \[0, 1\]"),
    ],
)
def test_what_is_no_probability_is_refused_with_clip_and_frame(probability: Any, message: str, clip: Clip) -> None:
    with pytest.raises(InputError, match=f"broken: set/walk frame 00000 .*{message}"):
        list(segment(_Broken(probability), clip, read_clip(clip)))


# Folders of masks -----------------------------------------------------------------------------------------------------


def soft(number: int) -> np.ndarray:
    return np.linspace(0, 1, 48 * 64, dtype=np.float32).reshape(48, 64) * np.float32(1 - number / 10)


KINDS: dict[str, tuple[Callable[[int], bytes], Callable[[int], np.ndarray]]] = {
    "0 and 255": (lambda n: png(FRAMES[n].mask * 255), lambda n: FRAMES[n].mask),
    "1 bit": (lambda n: encode_mask(FRAMES[n].mask), lambda n: FRAMES[n].mask),
    "8-bit soft": (lambda n: encode_soft(soft(n)), soft),
}


@pytest.mark.parametrize("kind", KINDS)
def test_masks_in_files_arrive_as_probabilities(kind: str, tmp_path: Path, clip: Clip) -> None:
    encode, expected = KINDS[kind]
    for number in range(4):
        put(tmp_path / "masks/set/walk" / f"{number:05d}.png", encode(number))
    check_predictions(tmp_path / "masks", [clip])
    for _ in range(2):
        for number, probability in enumerate(answers(open_segmenter(tmp_path / "masks", Config()), clip)):
            np.testing.assert_allclose(probability, expected(number), atol=1 / 509)
            assert probability.dtype == np.float32


def test_masks_in_a_video_arrive_as_probabilities(tmp_path: Path, clip: Clip) -> None:
    lumas = [np.rint(soft(number) * 255).astype(np.uint8) for number in range(4)]
    film(tmp_path / "masks/set/walk.mkv", lumas)
    check_predictions(tmp_path / "masks", [clip])
    for number, probability in enumerate(answers(open_segmenter(tmp_path / "masks", Config()), clip)):
        np.testing.assert_allclose(probability, soft(number), atol=1.5 / 255)


@pytest.fixture
def masks(tmp_path: Path) -> Path:
    for number, frame in enumerate(FRAMES):
        put(tmp_path / "masks/set/walk" / f"{number:05d}.png", png(frame.mask * 255))
    return tmp_path / "masks"


Damage = Callable[[Path], Any]
DAMAGES: dict[str, tuple[Damage, str]] = {
    "a missing mask": (lambda f: (f / "00002.png").unlink(), "must have 00002.png"),
    "a surplus mask": (lambda f: put(f / "00009.png", png(FRAMES[0].mask)), "'00009' must have a frame"),
    "another size": (lambda f: put(f / "00002.png", png(np.zeros((40, 64)))), "size 64x48, that of 00002 has 64x40"),
    "a broken mask": (lambda f: put(f / "00002.png", png(FRAMES[2].mask)[:50]), "00002.png"),
    "a palette": (lambda f: put(f / "00002.png", png(FRAMES[2].mask, palette=True)), "8-bit gray PNG"),
    "no PNG": (lambda f: put(f / "00002.png", FRAMES[2].jpeg), "00002.png"),
    "another suffix": (lambda f: put(f / "00002.npz", b"x"), "must be a PNG"),
    "zeros and ones": (
        lambda f: [put(f / f"{n:05d}.png", png(frame.mask * 1)) for n, frame in enumerate(FRAMES)],
        "hold 0 and 1; write 255",
    ),
    "labels": (
        lambda f: [put(f / f"{n:05d}.png", png(frame.mask * 16)) for n, frame in enumerate(FRAMES)],
        "hold 0 and 16; write 255",
    ),
    "a video, too": (lambda f: film(f.parent / "walk.mkv", [np.zeros((48, 64), np.uint8)]), "ambiguous: both"),
    "no clip": (lambda f: f.rename(f.parent / "run"), "must have the masks of clip 'set/walk'"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_masks_that_do_not_fit_the_clip_are_refused_by_name(name: str, masks: Path, clip: Clip) -> None:
    damage, message = DAMAGES[name]
    damage(masks / "set/walk")
    assert message in refusal(masks, clip)


@pytest.mark.parametrize(("count", "message"), [(3, "ends before frame 00003"), (5, "more frames than its clip")])
def test_a_video_of_masks_must_be_as_long_as_the_clip(count: int, message: str, tmp_path: Path, clip: Clip) -> None:
    film(tmp_path / "masks/set/walk.mkv", [np.zeros((48, 64), np.uint8)] * count)
    assert message in refusal(tmp_path / "masks", clip)


def test_masks_of_unknown_clips_are_refused_before_any_work(masks: Path, clip: Clip) -> None:
    check_predictions(masks, [clip])
    put(masks / "run/00000.png", png(FRAMES[0].mask))
    with pytest.raises(InputError, match=r"run/00000.png belongs to no clip"):
        check_predictions(masks, [clip])


def test_the_digest_of_a_folder_of_masks_is_that_of_names_and_bytes(masks: Path, tmp_path: Path) -> None:
    first = PredictedMasks(masks, ClipConfig())
    assert first.id == f"masks-{first.sha256[:12]}"
    copy = masks.rename(tmp_path / "moved")
    put(copy / "set/.hidden", b"x")
    assert PredictedMasks(copy, ClipConfig()).sha256 == first.sha256
    (copy / "set/walk/00003.png").rename(copy / "set/walk/00004.png")
    assert PredictedMasks(copy, ClipConfig()).sha256 != first.sha256


def test_limits_bind_predicted_masks(masks: Path, clip: Clip) -> None:
    segmenter = open_segmenter(masks, Config(), ClipConfig(max_frames=3))
    assert len(answers(segmenter, clip)) == 4
    tight = ClipConfig()
    object.__setattr__(tight, "limits", type(tight.limits)(pixels=100))
    with pytest.raises(InputError, match="TooLarge"):
        answers(open_segmenter(masks, Config(), tight), clip)
