r"""Single samples on the report: which ones, and their pictures with masks.

A picture is held once; overlay, outline and cut-out are made of photograph and mask by the browser, without a script:

    photograph (JPEG)          mask (1-bit PNG)            shown
    ┌──────────┐               ┌──────────┐    overlay     white of the mask becomes a transparent colour
    │  (o)     │       +       │   ██     │    outline     its edge alone
    │  /█\     │               │  ████    │    cut-out     photograph x mask
    └──────────┘               └──────────┘
"""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from evaluation.measures import NONE
from evaluation.page import Child, Html, absent, chip, join, note, section, shortened, table, tag
from manifests.image import ImageLimits, decode_image
from manifests.mask import decode_mask, encode_mask
from review.catalog import Place
from review.pixels import Pixels, PixelsError
from review.report_choice import Choice, Group
from review.report_marks import listed, name_of, number

Json = Mapping[str, Any]

SIDE = 176
"""Long side of a picture, in pixels."""

_BYTES = 9_000  # of one photograph at most
_ALL_BYTES = 1_600_000  # of all photographs and masks: a report of 300 samples stays below 3 MB
_QUALITIES = (85, 78, 70, 60, 50, 40, 30, 20, 10)
_FACTS = {"q": "q", "label_confidence": "confidence", "student_iou": "IoU"}
_DECISIONS = {"keep": ("kept", "good"), "hold": ("held", ""), "drop": ("dropped", "bad")}
_THUMB = ImageLimits(pixels=1 << 22, bytes=1 << 24, min_side=1, max_aspect=1e6)

STYLE = """
.tools{position:sticky;top:0;z-index:2;background:var(--bg);border-bottom:1px solid var(--line);padding:8px 0;
display:flex;flex-wrap:wrap;gap:4px 26px;font-size:14px}
.tools fieldset{border:0;margin:0;padding:0;display:flex;flex-wrap:wrap;gap:4px 14px;min-width:0}
.tools legend{float:left;color:var(--muted);margin-right:10px;padding:0}
.tools label{display:inline-flex;gap:5px;align-items:center;cursor:pointer}
.tools input{accent-color:var(--s0);margin:0}
.sheet{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(var(--tile,158px),100%),1fr));gap:14px 12px;
margin:10px 0 22px;align-items:start}
.samples:has(#size-large:checked){--tile:264px}
.sheet figure{min-width:0}
.sheet figure:target{outline:3px solid var(--s0);outline-offset:3px}
.sheet figcaption{font-size:12px;line-height:1.45;padding-top:3px;overflow-wrap:anywhere}
.sheet .chip{font-size:11px;padding:0 5px;margin:0 3px 0 0}
.pic{position:relative;display:block;background:#000;isolation:isolate;border-radius:4px;overflow:hidden}
.pic img{display:block;width:100%;height:auto}
.pic .m,.pic .t{position:absolute;inset:0;height:100%}
.pic .m{filter:url(#tint)}.pic .t{filter:url(#old)}
.samples:has(#mask-outline:checked) .pic .m{filter:url(#edge)}
.samples:has(#mask-cut:checked) .pic .m{filter:none;mix-blend-mode:multiply}
.samples:has(#mask-cut:checked) .pic .t,.samples:has(#mask-none:checked) .pic :is(.m,.t){display:none}
.filters{position:absolute;width:0;height:0}
.key-new,.key-old{display:inline-block;width:16px;height:10px;margin:0 4px 0 0;border:2px solid #56b4e9}
.key-new{background:rgba(86,180,233,.5)}.key-old{border-color:#d55e00;margin-left:10px}
@media print{.tools{display:none}}
"""
"""Rules of the sheets, beside those of the house."""


# Pictures -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Pictures:
    """What is shown of one sample.

    Attributes:
        photograph: JPEG.
        mask: 1-bit PNG of its size.
        teacher: 1-bit PNG of what the teacher had said, where the mask says something else.
        shape: height and width in pixels.
    """

    photograph: bytes
    mask: bytes
    teacher: bytes | None
    shape: tuple[int, int]


def pictures(pixels: Pixels, place: Place, most: int) -> Pictures:
    """The pictures of a sample, made small.

    Args:
        pixels: of the release.
        place: of the sample.
        most: bytes of photograph and masks at most, as far as JPEG goes.

    Raises:
        ShardError: the shard is damaged; named.
    """
    shown = decode_image(pixels.thumb(place, SIDE), _THUMB).pixels
    mask, teacher = _bilevel(pixels.mask(place, "mask", SIDE)), None
    with contextlib.suppress(PixelsError):  # most samples have none
        teacher = _bilevel(pixels.mask(place, "teacher", SIDE))
    return Pictures(
        photograph=_packed(shown, most - len(mask) - len(teacher or b"")),
        mask=mask,
        teacher=teacher,
        shape=(shown.shape[0], shown.shape[1]),
    )


def _bilevel(gray: bytes) -> bytes:
    return encode_mask(decode_mask(gray, _THUMB.pixels))


def budget(samples: int) -> int:
    """Bytes that the pictures of one of so many samples may need."""
    return min(_BYTES, _ALL_BYTES // max(1, samples))


def _packed(picture: NDArray[np.uint8], most: int) -> bytes:
    """The picture at the best quality that needs at most so many bytes."""
    made = (_jpeg(picture, quality) for quality in _QUALITIES)
    return next((data for data in made if len(data) <= most), _jpeg(picture, _QUALITIES[-1]))


def _jpeg(picture: NDArray[np.uint8], quality: int) -> bytes:
    options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_OPTIMIZE, 1]
    good, data = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), options)
    if not good:
        raise ValueError(f"OpenCV could not encode a JPEG of shape {picture.shape}")
    return bytes(data)


# Sheets ---------------------------------------------------------------------------------------------------------------


def samples_section(title: str, choice: Choice, shown: Mapping[str, Pictures] | None) -> Html:
    """The samples, group by group.

    Args:
        title: of the section.
        choice: the samples.
        shown: pictures by id, of the samples whose pixels are kept; None for a report without pictures.
    """
    if not choice.ids:
        return section("samples", title, absent("no sample was asked for, or the release has none."))
    parts = [_group(group, shown, choice.random) for group in choice.groups]
    return tag("div", section("samples", title, _how(shown is not None), *parts), class_="samples")


def _how(pictured: bool) -> Html:
    if not pictured:
        return note("This report was made without pictures: samples are listed by id.")
    masks = {"overlay": "overlay", "outline": "outline", "cut": "cut-out", "none": "none"}
    sizes = {"small": "small", "large": "large"}
    return join(
        note(
            tag("span", class_="key-new"),
            "the published mask",
            tag("span", class_="key-old"),
            "what the teacher had said, where the published mask says something else. Pictures are small copies: judge "
            "outlines in curate review.",
        ),
        tag("div", _choice("Mask", "mask", masks), _choice("Size", "size", sizes), class_="tools"),
        _filters(),
    )


def _choice(title: str, key: str, options: Mapping[str, str]) -> Html:
    first = next(iter(options))
    labels = (
        tag("label", tag("input", type="radio", name=key, id=f"{key}-{value}", **_checked(value == first)), text)
        for value, text in options.items()
    )
    return tag("fieldset", tag("legend", title), *labels)


def _checked(on: bool) -> dict[str, str]:
    return {"checked": "checked"} if on else {}


def _filters() -> Html:
    """How a mask is drawn: its white as a transparent colour, or its edge in a colour."""
    return tag(
        "svg",
        tag(
            "filter", _coloured((0.337, 0.706, 0.914), 0.5), id="tint", color_interpolation_filters="sRGB",
        ),
        _edge("edge", (0.337, 0.706, 0.914)),
        _edge("old", (0.835, 0.369, 0.0)),
        class_="filters",
        aria_hidden="true",
    )  # fmt: skip


def _coloured(colour: tuple[float, float, float], share: float) -> Html:
    rows = " ".join(f"0 0 0 0 {value}" for value in colour)
    return tag("feColorMatrix", type="matrix", values=f"{rows} {share} 0 0 0 0")


def _edge(key: str, colour: tuple[float, float, float]) -> Html:
    return tag(
        "filter",
        _coloured(colour, 1.0),
        tag("feMorphology", operator="dilate", radius="1.5", result="wide"),
        tag("feMorphology", in_="wide", operator="erode", radius="2.5", result="narrow"),
        tag("feComposite", in_="wide", in2="narrow", operator="out"),
        id=key,
        color_interpolation_filters="sRGB",
    )


def _group(group: Group, shown: Mapping[str, Pictures] | None, random: frozenset[str]) -> Html:
    head = tag("h3", group.title, " ", tag("span", f"{len(group.samples):,} shown", class_="note"), id=f"g-{group.key}")
    if not group.samples:
        return join(head, note(group.told if group.key == "random" else "None."))
    if shown is None:
        return join(head, note(group.told), _table(group, random))
    tiles = (_tile(sample, shown.get(sample["id"]), random) for sample in group.samples)
    return join(head, note(group.told), tag("div", *tiles, class_="sheet"))


def _tile(sample: Json, shown: Pictures | None, random: frozenset[str]) -> Html:
    name = str(sample["id"])
    facts = (f"{text} {number(sample[key], 2)}" for key, text in _FACTS.items())
    caption = tag(
        "figcaption",
        *_chips(sample, random),
        tag("span", *(join(" ", tag("span", fact, class_="nowrap")) for fact in facts), class_="meta"),
        tag("span", _reasons(sample), class_="meta") if sample["reasons"] else None,
        tag("span", name, class_="meta id"),
    )
    return tag("figure", _pic(sample, shown), caption, id=f"s-{name}")


def _pic(sample: Json, shown: Pictures | None) -> Html:
    if shown is None:
        return tag("p", "Its pixels are not kept.", class_="absent")
    size = {"width": str(shown.shape[1]), "height": str(shown.shape[0])}
    parts = [tag("img", src=_data("jpeg", shown.photograph), alt=f"Sample {sample['id']}", **size)]
    if shown.teacher is not None:
        parts.append(tag("img", src=_data("png", shown.mask), alt="Its mask", class_="m"))
        parts.append(tag("img", src=_data("png", shown.teacher), alt="What the teacher had said", class_="t"))
    else:
        parts.append(tag("img", src=_data("png", shown.mask), alt="Its mask", class_="m"))
    return tag("span", *parts, class_="pic")


def _data(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _chips(sample: Json, random: frozenset[str]) -> Iterator[Html]:
    yield chip(*_DECISIONS[sample["decision"]])
    if sample["verdict"] != sample["decision"]:
        yield chip(shortened(str(sample["verdict"]), 20))
    if sample["label_source"] != "pseudo":
        yield chip(shortened(str(sample["label_source"]), 20))
    if sample["state"] != "undecided":
        yield chip(f"review: {sample['state']}", "bad" if sample["state"] == "disputed" else "")
    if sample["id"] in random:
        yield chip("random")


def _reasons(sample: Json) -> Html:
    return listed([name_of(reason) for reason in sample["reasons"]], 3)


def _table(group: Group, random: frozenset[str]) -> Html:
    head: list[Child] = ["Sample", "Is", "Split", "q", "Confidence", "Student IoU", "Reasons"]
    rows: list[list[Child]] = [
        [
            tag("span", str(sample["id"]), class_="id"),
            join(*_chips(sample, random)),
            str(sample["split"]),
            number(sample["q"]),
            number(sample["label_confidence"], 2),
            number(sample["student_iou"], 2),
            _reasons(sample) if sample["reasons"] else NONE,
        ]
        for sample in group.samples
    ]
    return table(head, rows, caption=group.title, text=(0, 1, 2, 6))
