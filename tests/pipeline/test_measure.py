"""Laws of the work on one clip: every frame once, with its flow, and every bad score named."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from evaluation.flow import FlowCache
from pipeline import measure
from pipeline.clip_formats import Clip, ClipConfig, ClipFrame
from pipeline.clips import find_clips, read_clip
from pipeline.errors import InputError
from pipeline.evaluate_config import EvaluateConfig
from pipeline.measure import Film, clips_table, measure_clip, read_clips
from pipeline.stage import Span
from tests.pipeline.evaluations import FRAMES_EACH, HEIGHT, WIDTH, World, draw


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return draw(tmp_path_factory.mktemp("world"))


class Spoiled:
    """A model that fails in one frame."""

    id = "spoiled"
    sha256 = ""

    def __init__(self, value: float) -> None:
        self._value = value

    def reset(self, clip: Clip) -> None:
        """Nothing to forget."""

    def __call__(self, frame: ClipFrame) -> NDArray[np.float32]:
        soft = np.zeros(frame.image.shape[:2], np.float32)
        soft[0, 0] = self._value if frame.index == 6 else 0
        return soft

    def finish(self) -> None:
        """Nothing is left."""


class Fixed(Spoiled):
    """A model that always finds the same."""

    def __init__(self, mask: NDArray[np.bool_]) -> None:
        super().__init__(0.0)
        self._mask = mask

    def __call__(self, frame: ClipFrame) -> NDArray[np.float32]:
        return self._mask[: len(frame.image)].astype(np.float32)


@pytest.mark.parametrize("value", [math.nan, math.inf, 1.5])
def test_a_score_that_is_no_probability_names_clip_and_frame(world: World, value: float) -> None:
    clip = find_clips(world.videos)[1]
    with pytest.raises(InputError, match=r"ben.* frame 0*6"):
        measure_clip(clip, Spoiled(value), EvaluateConfig())


def shown(film: Film) -> Iterator[tuple[int, bytes, Any, bool]]:
    for frame in film.frames():
        assert frame.truth is not None
        yield frame.index, frame.image.tobytes(), frame.truth.sum(), film.flow is None


@pytest.mark.parametrize("held", [0, 30_000, 1 << 30])
def test_a_film_shows_every_frame_once_wherever_its_flow_comes_from(
    world: World, tmp_path: Path, held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "HELD_BYTES", held)
    clip, config = find_clips(world.videos)[0], ClipConfig()
    cache = FlowCache(folder=tmp_path)
    bare = list(shown(Film(clip, config, None)))
    assert [index for index, *_ in bare] == list(range(FRAMES_EACH))
    computed, kept = (list(shown(Film(clip, config, cache))) for _ in range(2))
    assert [row[:3] for row in computed] == [row[:3] for row in bare]
    assert kept == computed
    assert [row[3] for row in kept] == [True, *[False] * (FRAMES_EACH - 1)]
    (path,) = tmp_path.glob("*.flow")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert list(shown(Film(clip, config, cache))) == computed


def test_pixels_that_do_not_count_are_no_errors_in_a_picture(world: World) -> None:
    clip, config = find_clips(world.videos)[0], EvaluateConfig()
    void = np.zeros((HEIGHT, WIDTH), np.bool_)
    void[:, : WIDTH // 2] = True

    def pictures(found: NDArray[np.bool_], *, bare: bool) -> list[tuple[int, bytes]]:
        def frames(*_: Any) -> Iterator[ClipFrame]:
            for frame in read_clip(clip):
                truth = frame.truth & ~void if bare and frame.truth is not None else frame.truth
                yield replace(frame, truth=truth, void=None if bare else void)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(measure, "read_clip", frames)
            return list(measure_clip(clip, Fixed(found), config).pictures)

    everywhere = np.ones_like(void)
    assert pictures(everywhere, bare=False) == pictures(everywhere & ~void, bare=True)


def test_clips_come_back_from_their_table(world: World, tmp_path: Path) -> None:
    clips = find_clips(world.videos)
    path = tmp_path / "clips.parquet"
    pq.write_table(clips_table(clips), path)
    assert read_clips(Span(uri=str(path))) == list(clips)
    assert read_clips(Span(uri=str(path), start=1, stop=2)) == [clips[1]]
