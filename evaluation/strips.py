"""The part of the report on single videos: metrics over time, and the worst frames as pictures."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from evaluation.charts import Axis, Floats, axis_of, colours, legend, thinned, timeline
from evaluation.measures import counted, finite, measure_of
from evaluation.page import Html, absent, details, join, note, section, tag, words

Record = Mapping[str, object]
Pictures = Mapping[tuple[str, int], bytes]

_UNFOLDED = 12  # videos shown at once
_POINTS, _LEAST_POINTS, _ALL_POINTS = 240, 40, 60_000  # of a line: at most, at least; of all lines of one metric


def strips_section(
    frames: Sequence[Record],
    videos: Sequence[Record],
    pictures: Pictures,
    colour_names: Sequence[tuple[str, tuple[int, int, int]]],
) -> Html:
    """Every video, worst first.

    Args:
        frames: rows of frames.
        videos: rows of videos.
        pictures: (video, index) -> JPEG.
        colour_names: what the colours of the pictures mean.
    """
    rows = _by_video(frames)
    key = next((k for k in ("boundary_iou", "iou", "warped_masked", "adjacent") if _has(videos, k)), "adjacent")
    ordered = sorted(videos, key=lambda row: (_or_one(row.get(key)), str(row["video"])))
    keys = shown_metrics(frames)
    axis = _axis(frames, keys)
    points = max(_LEAST_POINTS, min(_POINTS, _ALL_POINTS // len(videos)))
    label = measure_of(key).label
    cards = [
        details(
            _title(row, keys),
            _card(row, rows.get(str(row["video"]), []), keys, axis, points, pictures),
            unfolded=at < _UNFOLDED,
            class_="card",
        )
        for at, row in enumerate(ordered)
    ]
    return section(
        "videos",
        "Video by video",
        note(
            f"Lowest {label} first. All strips have one scale; what lies on the lower edge may be lower. Long videos "
            "show the least value of each stretch. Dotted lines are cuts and gaps, which no pair spans."
        ),
        legend([measure_of(k).label for k in keys], worst=True),
        colours(colour_names) if pictures and colour_names else None,
        *cards,
    )


def shown_metrics(frames: Sequence[Record]) -> list[str]:
    """The metrics of the strips: region and boundary where there are labels, and consistency."""
    steady = ["warped_masked"] if _has(frames, "warped_masked") else []
    region = [key for key in ("iou", "boundary_iou") if _has(frames, key)]
    return [key for key in (*region, *steady, "adjacent") if _has(frames, key)][:3]


def _axis(frames: Sequence[Record], keys: Sequence[str]) -> Axis:
    """From the first percentile of all values up."""
    values = [value for key in keys for row in frames if (value := finite(row.get(key))) is not None]
    low = float(np.quantile(values, 0.01)) if values else 0.0
    return axis_of([low, 1.0], (0.0, 1.0))


def _by_video(frames: Sequence[Record]) -> dict[str, list[Record]]:
    ordered = sorted(frames, key=lambda row: (str(row["video"]), _index(row)))
    return {name: list(rows) for name, rows in itertools.groupby(ordered, key=lambda row: str(row["video"]))}


def _index(row: Record) -> int:
    return int(finite(row["index"]) or 0)


def _has(rows: Sequence[Record], key: str) -> bool:
    return any(finite(row.get(key)) is not None for row in rows)


def _or_one(value: object) -> float:
    number = finite(value)
    return 1.0 if number is None else number


def _title(video: Record, keys: Sequence[str]) -> Html:
    return join(tag("h3", words(str(video["video"]))), " ", tag("span", _figures(video, keys), class_="note"))


def _figures(row: Record, keys: Sequence[str]) -> str:
    known = ((measure_of(key), value) for key in keys if (value := finite(row.get(key))) is not None)
    return " · ".join(f"{measure.label} {measure.score(value)}" for measure, value in known)


def _card(
    video: Record, rows: Sequence[Record], keys: Sequence[str], axis: Axis, points: int, pictures: Pictures
) -> Html:
    name = str(video["video"])
    worst = [int(at) for index in _sequence(video.get("worst_frames")) if (at := finite(index)) is not None]
    series = [thinned(_values(rows, key), points) for key in keys]
    if not rows or not any(np.isfinite(values).any() for values in series):
        return tag("div", tag("p", _facts(video), class_="note"), absent("no frame of this video has a score."))
    places = {_index(row): at * (len(series[0]) - 1) / max(1, len(rows) - 1) for at, row in enumerate(rows)}
    cuts = [places[_index(row)] for row in rows[1:] if row.get("follows") is False or row.get("follows") == 0]
    label = f"{', '.join(measure_of(key).label for key in keys)} over the {len(rows)} frames of {name}"
    shots = [_shot(rows, name, index, keys, pictures) for index in worst]
    strip = timeline(
        series, axis, _ends(rows), label, cuts=cuts, worst=[places[index] for index in worst if index in places]
    )
    return tag("div", tag("p", _facts(video), class_="note"), strip, tag("div", *shots, class_="shots"))


def _ends(rows: Sequence[Record]) -> tuple[str, str]:
    """The first and the last frame, with their times."""
    times = (finite(row.get("seconds")) for row in (rows[0], rows[-1]))
    texts = [
        f"frame {_index(row)}" + ("" if seconds is None else f", {seconds:.1f} s")
        for row, seconds in zip((rows[0], rows[-1]), times, strict=True)
    ]
    return texts[0], texts[1]


def _facts(video: Record) -> str:
    parts = []
    for key, noun in (("frames", "frame"), ("labelled", "labelled frame"), ("pairs", "pair")):
        count = finite(video.get(key))
        parts += [counted(int(count), noun)] if count is not None else []
    if video.get("subject_id") not in (None, ""):
        parts.append(f"subject {video['subject_id']}")
    for key, text in (("fps", "{:.4g} frames per second"), ("dtssd", "dtSSD {:.2f}")):
        value = finite(video.get(key))
        parts += [text.format(value)] if value is not None else []
    for key in ("adjacent_excess", "warped_excess"):
        if finite(video.get(key)) is not None:
            parts.append(f"{measure_of(key).label.lower()} {measure_of(key).score(video[key])}")
    speed = finite(video.get("seconds_per_frame"))
    parts += [f"{1000 * speed:.1f} ms per frame"] if speed is not None else []
    return " · ".join(parts)


def _shot(rows: Sequence[Record], name: str, index: int, keys: Sequence[str], pictures: Pictures) -> Html | None:
    row = next((row for row in rows if _index(row) == index), None)
    seconds = None if row is None else finite(row.get("seconds"))
    scores = "" if row is None else _figures(row, keys)
    caption = (
        f"Frame {index}" + (f", {seconds:.2f} s" if seconds is not None else "") + (f": {scores}" if scores else "")
    )
    words_ = tag("figcaption", caption)
    picture = pictures.get((name, index))
    if picture is None:
        return tag("figure", words_)
    data = f"data:image/jpeg;base64,{base64.b64encode(picture).decode('ascii')}"
    return tag("figure", tag("img", src=data, alt=f"{name}, {caption}, with its masks", loading="lazy"), words_)


def _sequence(value: object) -> Sequence[object]:
    return value.tolist() if isinstance(value, np.ndarray) else value if isinstance(value, (list, tuple)) else ()


def _values(rows: Sequence[Record], key: str) -> Floats:
    return np.array([np.nan if (v := finite(row.get(key))) is None else v for row in rows], np.float64)
