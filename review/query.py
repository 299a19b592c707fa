"""Which samples of a release a screen asks for: a small, strict language that comes from outside as JSON.

```
{"decision": ["hold"], "reason": ["part-surplus"], "attr": {"lighting_level": ["dark", null]},
 "range": {"student_iou": [null, 0.5]}, "cluster": [0, 23], "sort": "q", "descending": true}
```

Values of one key are alternatives, keys hold together. `null` as the value of an attribute is "not known".
A range holds low <= x < high, so that the ranges of the bins of a histogram share no sample; the highest bin is asked
for with an open end, or with its own upper edge, which is as good (see `Catalog.select`). A missing number is in no
range.
"""

import difflib
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from manifests.release import Json
from manifests.schema import DECISIONS, LABEL_SOURCES, SPLITS, VERDICTS

STATES = ("undecided", "approve", "reject", "hold", "redraw", "disputed")
"""What the reviewers say of a sample, in the order of their numbers."""
NUMBERS = (
    "label_confidence",
    "boundary_uncertainty",
    "student_iou",
    "student_boundary_iou",
    "temporal_iou",
    "mask_area_share",
    "mask_components",
    "n_persons",
    "q",
    "miss",
    "extra",
    "stability",
    "cluster_distance",
    "sampling_weight",
)
"""Columns of numbers that can be sorted by, cut into ranges and drawn as histograms."""
SORTS = ("id", *NUMBERS)
WORDS: Mapping[str, tuple[str, ...]] = {
    "decision": DECISIONS,
    "split": (*SPLITS, "hold", "dropped"),
    "verdict": VERDICTS,
    "label_source": LABEL_SOURCES,
    "state": STATES,
}
"""Keys whose values come from a fixed list."""

MAX_VALUES = 1000
"""Limit of the values of one key, and of the attributes and ranges."""
MAX_TEXT = 20_000_000
"""Limit of the characters of one value."""

_OPTIONAL = ("cell", "group", "id")
_KEYS = (*WORDS, "reason", "attr", "range", "cluster", *_OPTIONAL, "sort", "descending")
_ID = re.compile(r"[0-9a-f]{1,32}")


class QueryError(ValueError):
    """A question that nobody can answer; the message names the key, the rule and the value."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Query:
    """Samples that are asked for, and their order; an empty query asks for all, by id.

    Attributes:
        decision: of DECISIONS.
        split: train, val, test, hold or dropped.
        verdict: of VERDICTS.
        label_source: of LABEL_SOURCES.
        state: of STATES.
        reason: a decision must have one of these reasons.
        attr: (attribute, values) pairs, by name; None is "not known".
        range: (column, low, high) of NUMBERS, by name: low <= x < high, None is open.
        cluster: how the cluster path begins.
        cell: "name=class" as in the cells of the release, or a whole quota cell (a JSON list).
        group: the group that must stay in one split.
        id: how the sample id begins, 1..32 hex digits.
        sort: of SORTS; missing numbers come last, equal ones by id.
        descending: largest first.
    """

    decision: tuple[str, ...] = ()
    split: tuple[str, ...] = ()
    verdict: tuple[str, ...] = ()
    label_source: tuple[str, ...] = ()
    state: tuple[str, ...] = ()
    reason: tuple[str, ...] = ()
    attr: tuple[tuple[str, tuple[str | None, ...]], ...] = ()
    range: tuple[tuple[str, float | None, float | None], ...] = ()
    cluster: tuple[int, ...] = ()
    cell: str | None = None
    group: str | None = None
    id: str | None = None
    sort: str = "id"
    descending: bool = False

    def __post_init__(self) -> None:
        """Refuse what no release can answer."""
        for key, allowed in WORDS.items():
            for value in getattr(self, key):
                _one_of(value, allowed, key)
        for column, low, high in self.range:
            _one_of(column, NUMBERS, "range")
            _check_bounds(column, low, high)
        _one_of(self.sort, SORTS, "sort")
        if self.id is not None and not _ID.fullmatch(self.id):
            raise QueryError(f"id must be 1 to 32 lower-case hex digits, got {self.id!r:.60}")

    def to_json(self) -> dict[str, Json]:
        """The query as JSON; `parse_query` of it is equal to it."""
        value: dict[str, Json] = {key: list(found) for key in (*WORDS, "reason", "cluster") if (found := self._of(key))}
        if self.attr:
            value["attr"] = {name: list(values) for name, values in self.attr}
        if self.range:
            value["range"] = {column: [low, high] for column, low, high in self.range}
        value |= {key: found for key in ("cell", "group", "id") if (found := getattr(self, key)) is not None}
        if self.sort != "id":
            value["sort"] = self.sort
        return value | ({"descending": True} if self.descending else {})

    def _of(self, key: str) -> Sequence[str | int]:
        found: Sequence[str | int] = getattr(self, key)
        return found


def parse_query(value: object) -> Query:
    """The query that a JSON object states; None and {} ask for everything.

    Raises:
        QueryError: no object, an unknown key or word (with the nearest that there is), another type, or too many
            values.
    """
    try:
        return _parsed(value)
    except RecursionError as error:
        raise QueryError("a filter must have no more levels than a text can show; send what the page sends") from error


def _parsed(value: object) -> Query:
    if value is None:
        return Query()
    if not isinstance(value, dict):
        raise QueryError(f"a filter must be a JSON object, got {type(value).__name__}")
    for key in value:
        _one_of(key, _KEYS, "filter", "key")
    return Query(
        **{key: _READERS[key](item, key) for key, item in value.items() if not (item is None and key in _OPTIONAL)}
    )


def one_of(value: str, allowed: Collection[str], what: str) -> str:
    """`value`, where it is one of those allowed.

    Raises:
        QueryError: it is not; the nearest is named.
    """
    _one_of(value, allowed, what)
    return value


def _one_of(value: object, allowed: Collection[str], what: str, kind: str = "value") -> None:
    if isinstance(value, str) and value in allowed:
        return
    near = difflib.get_close_matches(str(value)[:100], [str(name)[:100] for name in allowed], n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(list(allowed)[:20])}"
    raise QueryError(f"{what}: unknown {kind} {value!r:.60}; {hint}")


def _items(value: object, key: str) -> list[Any]:
    if not isinstance(value, list):
        raise QueryError(f"{key} must be a list, got {type(value).__name__}")
    if len(value) > MAX_VALUES:
        raise QueryError(f"{key} must have at most {MAX_VALUES} values, got {len(value)}; ask for fewer at once")
    return value


def _object(value: object, key: str) -> list[tuple[str, Any]]:
    if not isinstance(value, dict):
        raise QueryError(f"{key} must be an object, got {type(value).__name__}")
    if len(value) > MAX_VALUES:
        raise QueryError(f"{key} must have at most {MAX_VALUES} names, got {len(value)}; ask for fewer at once")
    return [(_text(name, f"name in {key}"), item) for name, item in value.items()]


def _text(value: object, key: str) -> str:
    if not isinstance(value, str):
        raise QueryError(f"{key} must be a text, got {type(value).__name__}")
    if len(value) > MAX_TEXT:
        raise QueryError(f"{key} must have at most {MAX_TEXT} characters, got {len(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise QueryError(
            f"{key} must hold whole characters, got half of one (a lone surrogate): {value!r:.60}"
        ) from error
    return value


def _texts(value: object, key: str) -> tuple[str, ...]:
    return tuple(sorted({_text(item, key) for item in _items(value, key)}))


def _attributes(value: object, key: str) -> tuple[tuple[str, tuple[str | None, ...]], ...]:
    return tuple(sorted((name, _classes(name, item)) for name, item in _object(value, key)))


def _ranges(value: object, key: str) -> tuple[tuple[str, float | None, float | None], ...]:
    return tuple(sorted((name, *_bounds(name, item)) for name, item in _object(value, key)))


def _classes(name: str, value: object) -> tuple[str | None, ...]:
    key = f"attr: {name:.60}"
    found = {None if item is None else _text(item, key) for item in _items(value, key)}
    return tuple(sorted(found, key=lambda item: (item is None, item or "")))


def _bounds(name: str, value: object) -> tuple[float | None, float | None]:
    found = _items(value, f"range: {name:.60}")
    if len(found) != 2 or not all(item is None or type(item) in (int, float) for item in found):
        raise QueryError(f"range: {name:.60} must be [low, high] of numbers or null, got {found!r:.60}")
    try:
        low, high = (None if item is None else float(item) for item in found)
    except OverflowError as error:
        raise QueryError(f"range: {name:.60} must be finite, got {found!r:.60}") from error
    return low, high


def _check_bounds(column: str, low: float | None, high: float | None) -> None:
    if any(bound is not None and not math.isfinite(bound) for bound in (low, high)):
        raise QueryError(f"range: {column} must be finite, got [{low}, {high}]")
    if low is not None and high is not None and low > high:
        raise QueryError(f"range: {column} must have low <= high, got [{low}, {high}]")


def _path(value: object, key: str) -> tuple[int, ...]:
    found = _items(value, key)
    if not all(type(item) is int and -(1 << 31) <= item < 1 << 31 for item in found):
        raise QueryError(f"{key} must be a list of whole numbers below 2^31, got {found!r:.60}")
    return tuple(found)


def _flag(value: object, key: str) -> bool:
    if not isinstance(value, bool):
        raise QueryError(f"{key} must be true or false, got {value!r:.60}")
    return value


_READERS: Mapping[str, Callable[[object, str], Any]] = {
    **dict.fromkeys((*WORDS, "reason"), _texts),
    **dict.fromkeys(("cell", "group", "id", "sort"), _text),
    "attr": _attributes,
    "range": _ranges,
    "cluster": _path,
    "descending": _flag,
}
