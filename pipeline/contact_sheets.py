"""Contact sheets: a few thumbnails of each group of clusters, the chosen ones marked; bounded memory at any size."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from evaluation.page import Html, note, section, tag
from pipeline.embed import decode_jpeg, encode_jpeg, shrink
from pipeline.embedding_map import slim_parts
from pipeline.stage import Done, Span, read_span
from pipeline.waterfill import draw

_SIDE = 112  # pixels of the long side of a picture
_BYTES = 7000  # of one picture at most: 24 sheets stay far below the page's 4 MB
_QUALITIES = (80, 60, 40, 20, 5)
_GRID = "grid-template-columns:repeat(auto-fill,minmax(90px,1fr));gap:10px"
_SQUARE = "aspect-ratio:1;object-fit:contain;background:var(--panel);"
_FRAME = _SQUARE + "outline:3px solid var(--s0)"
_FADED = _SQUARE + "opacity:.55"
TITLE = "What the groups show"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shot:
    """One picture of a sheet.

    Attributes:
        id: of the frame.
        chosen: whether it was chosen.
        jpeg: the picture, at most 112 pixels a side.
    """

    id: str
    chosen: bool
    jpeg: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Sheet:
    """A group of clusters.

    Attributes:
        group: its number.
        candidates: its frames.
        chosen: those of them that were chosen.
        shots: some of them, the chosen first.
    """

    group: int
    candidates: int
    chosen: int
    shots: tuple[Shot, ...]


def contact_sheets(
    assigned: Done, embedded: Done, chosen: pa.Table, *, sheets: int, shots: int = 12
) -> tuple[list[Sheet], int]:
    """Sheets of the groups with the most chosen frames, then of those with the most candidates.

    Args:
        assigned: the assign stage.
        embedded: the embed stage, which has the thumbnails.
        chosen: rows with sample_id.
        sheets: how many at most.
        shots: pictures on each at most; two thirds of them chosen frames, where there are so many of both.

    Returns:
        The sheets, and how many groups there are.

    Raises:
        ValueError: ``sheets`` or ``shots`` is negative.
    """
    if sheets < 0 or shots < 0:
        raise ValueError(f"sheets and shots must be >= 0, got {sheets} and {shots}")
    sizes, picked = _picked(assigned, chosen, shots)
    groups = sorted({group for group, _ in sizes}, key=lambda g: (-sizes.get((g, 1), 0), -sizes.get((g, 0), 0), g))
    wanted = {g: _mixed(picked.get((g, 1), []), picked.get((g, 0), []), shots) for g in groups[:sheets]}
    pictures = _thumbnails(embedded, {name for rows in wanted.values() for name, _ in rows})
    out = [
        Sheet(
            group=group,
            candidates=sizes.get((group, 0), 0) + sizes.get((group, 1), 0),
            chosen=sizes.get((group, 1), 0),
            shots=tuple(Shot(id=i, chosen=c, jpeg=pictures[i]) for i, c in rows if i in pictures),
        )
        for group, rows in wanted.items()
    ]
    return out, len(groups)


def sheets_section(found: Sequence[Sheet], groups: int) -> Html:
    """The sheets, each with an anchor ``group-<number>``."""
    shown = (
        f" The {len(found)} of {groups} groups with the most chosen frames are shown." if groups > len(found) else ""
    )
    return section(
        "sheets",
        TITLE,
        note(
            "A group is a family of clusters of frames that look alike. Framed pictures were chosen, faded ones were "
            f"not; pictures are drawn by a hash, not picked by hand.{shown}"
        ),
        *(_sheet(sheet) for sheet in found),
    )


def _sheet(sheet: Sheet) -> Html:
    title = f"Group {sheet.group}"
    counts = f"{sheet.chosen:,} chosen of {sheet.candidates:,}"
    shots = (_shot(shot, title) for shot in sheet.shots)
    head = tag("h3", title, " ", tag("span", counts, class_="note"), id=f"group-{sheet.group}")
    return tag("div", head, tag("div", *shots, class_="shots", style=_GRID))


def _shot(shot: Shot, title: str) -> Html:
    state = "chosen" if shot.chosen else "not chosen"
    data = f"data:image/jpeg;base64,{base64.b64encode(shot.jpeg).decode('ascii')}"
    return tag("img", src=data, alt=f"{title}, {state}", title=shot.id, style=_FRAME if shot.chosen else _FADED)


_Key = tuple[int, int]  # group, and 1 for chosen frames


def _picked(assigned: Done, chosen: pa.Table, shots: int) -> tuple[dict[_Key, int], dict[_Key, list[tuple[int, str]]]]:
    """Frames of each group by whether they are chosen, and (hash, id) of those with the smallest hashes."""
    sizes: dict[_Key, int] = {}
    picked: dict[_Key, list[tuple[int, str]]] = {}
    for slim in slim_parts(assigned, chosen):
        cells = 2 * slim.groups + slim.chosen
        counts = np.bincount(cells, minlength=1)
        for cell in np.flatnonzero(counts).tolist():
            sizes[divmod(cell, 2)] = sizes.get(divmod(cell, 2), 0) + int(counts[cell])
        rows = draw(cells, slim.keys, np.full(len(counts), shots))
        new: dict[_Key, list[tuple[int, str]]] = {}
        for at, name in zip(rows.tolist(), slim.ids.take(pa.array(rows)).to_pylist(), strict=True):
            new.setdefault(divmod(int(cells[at]), 2), []).append((int(slim.keys[at]), name))
        for key, values in new.items():
            picked[key] = sorted([*picked.get(key, []), *values])[:shots]
    return sizes, picked


def _mixed(taken: Sequence[tuple[int, str]], left: Sequence[tuple[int, str]], shots: int) -> list[tuple[str, bool]]:
    """Ids of two thirds chosen frames and a third others; more of the one where the other has too few."""
    others = min(len(left), max(shots // 3, shots - len(taken)))
    return [(i, True) for _, i in taken[: shots - others]] + [(i, False) for _, i in left[:others]]


def _thumbnails(embedded: Done, ids: set[str]) -> dict[str, bytes]:
    """Small pictures of the frames; the thumbnails of one part are in memory at a time."""
    wanted = pa.array(sorted(ids), pa.string())
    out: dict[str, bytes] = {}
    for uri in embedded.uris():
        held = pc.is_in(read_span(Span(uri=uri), ["sample_id"]).column("sample_id"), value_set=wanted)
        if not pc.any(held).as_py():
            continue
        table = read_span(Span(uri=uri), ["sample_id", "thumbnail"]).filter(held)
        for row in table.to_pylist():
            if row["sample_id"] not in out:
                out[row["sample_id"]] = _small(row["thumbnail"])
    return out


def _small(thumbnail: bytes) -> bytes:
    """The picture at most 112 pixels a side and, at the best quality that allows it, at most 7,000 bytes."""
    pixels = shrink(decode_jpeg(thumbnail), _SIDE)
    made = (encode_jpeg(pixels, quality) for quality in _QUALITIES)
    return next((data for data in made if len(data) <= _BYTES), encode_jpeg(pixels, _QUALITIES[-1]))


def links(found: Sequence[Sheet]) -> Mapping[str, str]:
    """Group -> where its sheet is on the page."""
    return {str(sheet.group): f"#group-{sheet.group}" for sheet in found}
