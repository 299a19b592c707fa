"""Laws of rendered videos: frames keep their times, the person stays, and a name stands for a whole video only."""

import contextlib
import errno
import functools
import io
import os
import resource
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from rich.console import Console

from pipeline.errors import InputError, StorageError, UsageError
from pipeline.film import Film, Sound
from pipeline.preview import PARTS, PreviewResult, describe, preview
from tests.pipeline.clip_sets import film, png, put
from tests.pipeline.media import texture, video
from tests.pipeline.test_segmenters import FOUR, NANO, shipped

Pixels = NDArray[np.uint8]
HEIGHT, WIDTH = 96, 128
RED = (220, 30, 30)


def pictures(count: int, height: int = HEIGHT, width: int = WIDTH) -> list[Pixels]:
    """A red box that moves over green, with stripes below."""
    made = []
    for number in range(count):
        picture = (texture(1, height, width) // 4 + np.array([0, 120, 0])).astype(np.uint8)
        picture[80:, np.arange(width) // 4 % 2 == 0] += np.array([0, 60, 0], np.uint8)
        picture[20:70, 30 + number : 80 + number] = RED
        made.append(picture)
    return made


@pytest.fixture
def red(tmp_path: Path) -> Path:
    """A student to which red is a person."""
    return shipped(tmp_path / "red.onnx", NANO, [60.0, -60.0, 0.0])


@pytest.fixture
def green_video(tmp_path: Path) -> Path:
    return put(tmp_path / "in.mp4", video(pictures(6)))


def rendered(path: Path) -> tuple[list[Pixels], list[float]]:
    """Frames (H, W, 3) and their seconds."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    return [frame.to_ndarray(format="rgb24") for frame in frames], [float(frame.time or 0) for frame in frames]


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"in.mp4", "red.onnx", "sound.mp4"}


def test_the_person_stays_and_the_rest_is_the_new_background(green_video: Path, red: Path, tmp_path: Path) -> None:
    result = preview(green_video, red, tmp_path / "o.mp4", effect="replace", background="#0000ff")
    found, _ = rendered(tmp_path / "o.mp4")
    assert (result.frames, result.size, result.stopped, result.sound) == (6, (HEIGHT, WIDTH), "", "none")
    for number, frame in enumerate(found):
        np.testing.assert_allclose(frame[30:60, 40 + number : 70 + number].mean((0, 1)), RED, atol=10)
        np.testing.assert_allclose(frame[80:].mean((0, 1)), (0, 0, 255), atol=10)
    assert result.model.startswith("onnx-")
    assert set(result.milliseconds) == {*PARTS, "total"}
    for timing in result.milliseconds.values():
        assert 0 < timing.median <= timing.most
    assert result.milliseconds["total"].median < sum(t.most for t in result.milliseconds.values())
    assert left(tmp_path) == {"o.mp4"}


def test_every_effect_shows_what_it_says(green_video: Path, red: Path, tmp_path: Path) -> None:
    (source, *_), _ = rendered(green_video)
    shown = {}
    for effect in ("blur", "cutout", "mask"):
        preview(green_video, red, tmp_path / f"{effect}.mkv", effect=effect, compare=True)  # type: ignore[arg-type]
        frame = rendered(tmp_path / f"{effect}.mkv")[0][0]
        assert frame.shape == (HEIGHT, 2 * WIDTH, 3)
        assert np.abs(frame[:, :WIDTH].astype(np.int16) - source).mean() < 3
        shown[effect] = frame[:, WIDTH:]
    np.testing.assert_allclose(shown["cutout"][80:].mean((0, 1)), (0, 177, 64), atol=8)
    assert shown["mask"][30:60, 40:70].min() > 240
    assert shown["mask"][80:].max() < 15
    for effect in ("blur", "cutout"):
        np.testing.assert_allclose(shown[effect][30:60, 40:70].mean((0, 1)), RED, atol=10)
    assert shown["blur"][80:, :, 1].std() < 0.5 * source[80:, :, 1].std()


def test_a_picture_becomes_the_background(green_video: Path, red: Path, tmp_path: Path) -> None:
    halves = np.zeros((50, 200, 3), np.uint8)
    halves[:, 100:] = 255
    from PIL import Image

    Image.fromarray(halves).save(tmp_path / "halves.png")
    preview(green_video, red, tmp_path / "o.mp4", effect="replace", background=str(tmp_path / "halves.png"))
    frame = rendered(tmp_path / "o.mp4")[0][0]
    assert frame[80:, : WIDTH // 2 - 8].max() < 20
    assert frame[80:, WIDTH // 2 + 8 :].min() > 235


def test_frames_keep_their_times(red: Path, tmp_path: Path) -> None:
    times = [0, 1, 2, 7, 8, 30]  # thirtieths of a second
    source = put(tmp_path / "in.mp4", video(pictures(6), times))
    preview(source, red, tmp_path / "o.mp4")
    np.testing.assert_allclose(rendered(tmp_path / "o.mp4")[1], np.array(times) / 30, atol=2e-5)
    result = preview(source, red, tmp_path / "part.mp4", start=0.05, seconds=0.25)
    np.testing.assert_allclose(rendered(tmp_path / "part.mp4")[1], np.array([0, 5, 6]) / 30, atol=2e-5)
    assert result.frames == 3


def test_odd_sides_grow_by_their_last_line_and_pixels_keep_their_shape(red: Path, tmp_path: Path) -> None:
    source = film(tmp_path / "in.mkv", pictures(2, 75, 97))
    result = preview(source, red, tmp_path / "o.mp4", effect="cutout", background="#0000ff")
    (frame, _), _ = rendered(tmp_path / "o.mp4")
    assert result.size == frame.shape[:2] == (76, 98)
    np.testing.assert_allclose(frame[75], frame[74], atol=12)
    wide = io.BytesIO()
    with av.open(wide, "w", format="mp4") as output:
        track: Any = output.add_stream("libx264", rate=25)
        track.height, track.width, track.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        track.codec_context.sample_aspect_ratio = Fraction(4, 3)
        output.mux(track.encode(av.VideoFrame.from_ndarray(pictures(1)[0], format="rgb24")))
        output.mux(track.encode(None))
    preview(put(tmp_path / "in.mp4", wide.getvalue()), red, tmp_path / "wide.mp4")
    with av.open(str(tmp_path / "wide.mp4")) as container:
        assert container.streams.video[0].sample_aspect_ratio == Fraction(4, 3)


def test_rotation_is_applied(data: Path, red: Path, tmp_path: Path) -> None:
    result = preview(data / "clips/odd_rotate90_meta.mp4", red, tmp_path / "o.mp4", seconds=0.1)
    frames, _ = rendered(tmp_path / "o.mp4")
    assert result.size == frames[0].shape[:2] == (640, 360)
    assert len(frames) == 3


def test_starts_of_a_detect_with_mask_student_are_told(tmp_path: Path) -> None:
    model = shipped(tmp_path / "m.onnx", FOUR, [0.0, 0.0, 0.0, 1.0])
    other = [np.full((HEIGHT, WIDTH, 3), 250, np.uint8)] * 3
    source = put(tmp_path / "in.mp4", video(pictures(4) + other, [0, 1, 2, 3, 4, 5, 30]))
    result = preview(source, model, tmp_path / "o.mp4")
    assert [(reset.frame, reset.reason) for reset in result.resets] == [(0, "first"), (4, "cut"), (6, "gap")]
    assert result.resets[2].seconds == pytest.approx(1.0)
    assert "in 3 frames: 0 at 0.00 s (first), 4 at 0.13 s (cut), 6 at 1.00 s (gap)" in describe(result)[2]


def test_a_folder_of_masks_is_rendered_as_a_whole(green_video: Path, tmp_path: Path) -> None:
    for number in range(6):
        put(tmp_path / "masks/in" / f"{number:05d}.png", png(np.full((HEIGHT, WIDTH), 255)))
    preview(green_video, tmp_path / "masks", tmp_path / "o.mp4")
    for ours, theirs in zip(rendered(tmp_path / "o.mp4")[0], rendered(green_video)[0], strict=True):
        assert np.abs(ours.astype(np.int16) - theirs).mean() < 3
    with pytest.raises(UsageError, match="leave out --start, --seconds"):
        preview(green_video, tmp_path / "masks", tmp_path / "p.mp4", seconds=1)


# Sound ----------------------------------------------------------------------------------------------------------------


def with_sound(path: Path, codec: str = "aac", container: str = "mp4") -> Path:
    """Two seconds: 20 frames at 10 Hz, and a tone."""
    with av.open(str(path), "w", format=container) as output:
        track: Any = output.add_stream("libx264", rate=10, options={"bf": "0"})
        track.height, track.width, track.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        heard: Any = output.add_stream(codec, rate=16000, layout="mono")
        for picture in pictures(20):
            output.mux(track.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        for number in range(32):
            ticks = np.arange(number * 1000, number * 1000 + 1000)
            tone = (8000 * np.sin(ticks / 5)).astype(np.int16)[None]
            frame = av.AudioFrame.from_ndarray(tone, format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 16000, number * 1000, Fraction(1, 16000)
            output.mux(heard.encode(frame))
        for stream in (track, heard):
            output.mux(stream.encode(None))
    return path


def heard(path: Path) -> list[tuple[float, bytes]]:
    with av.open(str(path)) as container:
        packets = list(container.demux(audio=0)) if container.streams.audio else []
    return [(float(p.pts * p.time_base), bytes(p)) for p in packets if p.size and p.pts is not None]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_sound_is_copied_as_it_is(suffix: str, red: Path, tmp_path: Path) -> None:
    source = with_sound(tmp_path / "sound.mp4")
    assert preview(source, red, tmp_path / f"o{suffix}").sound == "copied"
    before, after = ([p for p in heard(path) if p[0] >= 0] for path in (source, tmp_path / f"o{suffix}"))
    assert len(before) > 25
    assert [data for _, data in after] == [data for _, data in before][: len(after)]
    assert len(before) - len(after) <= 1
    np.testing.assert_allclose([at for at, _ in after], [at for at, _ in before][: len(after)], atol=1e-3)


def test_sound_is_cut_with_the_picture(red: Path, tmp_path: Path) -> None:
    source = with_sound(tmp_path / "sound.mp4")
    preview(source, red, tmp_path / "o.mp4", start=0.5, seconds=1)
    after = heard(tmp_path / "o.mp4")
    sent = {data: at for at, data in heard(source)}
    assert 12 <= len(after) <= 17
    np.testing.assert_allclose([at for at, _ in after], [sent[data] - 0.5 for _, data in after], atol=1e-3)


def test_sound_that_the_container_cannot_hold_is_left_out_and_said(red: Path, tmp_path: Path) -> None:
    source = with_sound(tmp_path / "in.avi", "adpcm_ms", "avi")
    result = preview(source, red, tmp_path / "o.mp4")
    assert result.sound == "left out: .mp4 cannot hold adpcm_ms"
    assert len(rendered(tmp_path / "o.mp4")[0]) == result.frames == 20
    assert heard(tmp_path / "o.mp4") == []


def test_a_playlist_has_no_sound_of_other_files(tmp_path: Path) -> None:
    with_sound(tmp_path / "sound.mp4")
    source = put(tmp_path / "list.mp4", b"ffconcat version 1.0\nfile sound.mp4\n")
    sound = Sound(source, 0.0)
    sound.close()
    assert sound.stream is None
    assert sound.state.startswith("left out: must be MP4")


# What goes wrong ------------------------------------------------------------------------------------------------------


def test_a_video_that_breaks_is_shown_until_there(red: Path, tmp_path: Path) -> None:
    whole = video(pictures(20), to=tmp_path / "whole.mp4")
    source = put(tmp_path / "in.mp4", whole[: len(whole) * 3 // 4])
    result = preview(source, red, tmp_path / "o.mp4")
    frames, _ = rendered(tmp_path / "o.mp4")
    assert 0 < result.frames == len(frames) < 20
    assert result.stopped.startswith("Truncated: decoded")
    assert "ends early, the video is broken: Truncated" in describe(result)[-1]


Render = Callable[..., PreviewResult]
WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no video": ({"video": "missing.mp4"}, InputError, r"missing.mp4 cannot be read: No such file"),
    "a text": ({"video": "text.mp4"}, InputError, r"text.mp4: UnsupportedFormat: must be MP4, MOV"),
    "sound alone": ({"video": "audio.mp4"}, InputError, r"audio.mp4: NoVideoStream"),
    "no model": ({"model": "missing.onnx"}, InputError, r"--model .*missing.onnx must be a checkpoint"),
    "no such model": ({"model": "text.mp4"}, InputError, r"--model .*text.mp4"),
    "the output exists": ({"output": "text.mp4"}, InputError, r"--output .*text.mp4 exists; remove it"),
    "no folder": ({"output": "none/o.mp4"}, InputError, r"must be in a folder that exists"),
    "a suffix": ({"output": "o.gif"}, UsageError, r"--output must end in .mp4 or .mkv, got '.*o.gif'"),
    "after the end": ({"start": 9.0}, InputError, r"in.mp4 has no frame from --start on"),
    "start": ({"start": -1.0}, UsageError, "--start"),
    "seconds": ({"seconds": 0.0}, UsageError, "--seconds"),
    "no background": ({"effect": "replace"}, UsageError, "--effect replace needs --background"),
    "a background": ({"background": "red"}, UsageError, "--background is for replace and cutout, not for blur"),
    "no colour": ({"effect": "cutout", "background": "grene"}, InputError, "--background grene must be a picture"),
    "no picture": ({"effect": "cutout", "background": "text.mp4"}, InputError, "text.mp4: UnsupportedFormat"),
    "an effect": ({"effect": "wipe"}, UsageError, "--effect must be one of blur, replace, cutout, mask, got 'wipe'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_rendered_is_refused_by_name_and_leaves_nothing(
    name: str, green_video: Path, red: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, kind, message = WRONG[name]
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "text.mp4", b"no video at all")
    with av.open("audio.mp4", "w") as output:
        stream: Any = output.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    paths = {"video": green_video.name, "model": red.name, "output": "o.mp4"}
    asked = {key: Path(given.get(key, value)) for key, value in paths.items()} | {
        key: value for key, value in given.items() if key not in paths
    }
    with pytest.raises(kind, match=message):
        preview(**asked)
    assert left(tmp_path) == {"text.mp4", "audio.mp4"}


def test_until_it_is_whole_a_video_has_no_name_and_one_that_was_stopped_leaves_nothing(
    green_video: Path, red: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, count = Film.write, 0

    @functools.wraps(write)
    def stopped(self: Film, pixels: Pixels, seconds: float) -> None:
        nonlocal count
        assert not (tmp_path / "o.mp4").exists()
        assert any(name.endswith(".tmp") for name in left(tmp_path))
        count += 1
        if count == 4:
            raise KeyboardInterrupt
        write(self, pixels, seconds)

    monkeypatch.setattr(Film, "write", stopped)
    with pytest.raises(KeyboardInterrupt):
        preview(green_video, red, tmp_path / "o.mp4")
    assert left(tmp_path) == set()


@contextlib.contextmanager
def room(size: int) -> Iterator[None]:
    """Limits how large a file may grow; no longer than that, for the test's own log may be a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.9, 0.999])
def test_a_disk_that_runs_full_is_told_and_leaves_nothing(
    share: float, green_video: Path, red: Path, tmp_path: Path
) -> None:
    preview(green_video, red, tmp_path / "whole.mp4")
    size = (tmp_path / "whole.mp4").stat().st_size
    (tmp_path / "whole.mp4").unlink()
    full = pytest.raises(StorageError, match=r"--output .*o.mp4 cannot be written: File too large .* free there")
    with full, room(int(size * share)):
        preview(green_video, red, tmp_path / "o.mp4")
    assert left(tmp_path) == set()


def test_progress_is_shown_on_a_terminal_alone(green_video: Path, red: Path, tmp_path: Path) -> None:
    said = io.StringIO()
    preview(green_video, red, tmp_path / "a.mp4", console=Console(file=said, force_terminal=True))
    assert "preview" in said.getvalue()
    assert " of 6 frames" in said.getvalue()
    quiet = io.StringIO()
    preview(green_video, red, tmp_path / "b.mp4", console=Console(file=quiet))
    assert quiet.getvalue() == ""
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_progress_within_a_part_of_a_video_promises_no_number_of_frames(
    green_video: Path, red: Path, tmp_path: Path
) -> None:
    said = io.StringIO()
    preview(green_video, red, tmp_path / "a.mp4", seconds=0.1, console=Console(file=said, force_terminal=True))
    assert " frames, " in said.getvalue()
    assert " of " not in said.getvalue()


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_an_output_that_appeared_meanwhile_is_not_overwritten(
    links: bool, green_video: Path, red: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    close = Film.close

    @functools.wraps(close)
    def taken(self: Film) -> None:
        put(tmp_path / "o.mp4", b"another's")
        close(self)

    def refused(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    if not links:
        monkeypatch.setattr(os, "link", refused)
    preview(green_video, red, tmp_path / "free.mp4")
    monkeypatch.setattr(Film, "close", taken)
    with pytest.raises(InputError, match=r"--output .*o.mp4 exists"):
        preview(green_video, red, tmp_path / "o.mp4")
    assert (tmp_path / "o.mp4").read_bytes() == b"another's"
    assert left(tmp_path) == {"o.mp4", "free.mp4"}


@pytest.mark.parametrize(("name", "side"), [("none/a.mp4", 64), ("a.mp4", 1 << 17)], ids=["no folder", "no codec"])
def test_a_film_that_cannot_begin_leaves_nothing_open(name: str, side: int, tmp_path: Path) -> None:
    source, path = with_sound(tmp_path / "sound.mp4"), tmp_path / name
    sound = Sound(source, 0.0)
    with pytest.raises(StorageError, match=r"--output .*cannot be written") as caught:
        Film(path, path, (64, side), rate=Fraction(25), sound=sound, turned=False)
    assert [file for file in _opened_files() if file.is_relative_to(tmp_path)] == []
    assert caught.value.__traceback__ is not None  # else the file would be closed by going out of scope


def _opened_files() -> set[Path]:
    places = list(Path("/proc/self/fd").iterdir())
    return {place.readlink() for place in places if place.is_symlink()}
