"""Filter bias: whether the judge and the people remove some values of an attribute more often than the whole pool.

Removed is dropped or held. The interval is Wilson's at 95 %; a value is flagged where it excludes the rate of the pool,
and nothing is claimed of fewer than FLOOR rows. Twenty attributes give a few flags by chance: a flag is a question.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from evaluation.classical import wilson_interval
from manifests.release import Json
from review.coding import Codes, Lists
from review.columns import Columns

FLOOR = 30
"""Rows of a value below which nothing is claimed of it."""
LEVEL = 0.95
VALUES = 60
"""Values of one attribute that are listed; the smaller ones are added up."""
STACKED = 8
"""Reasons that are told apart; the rarer ones are added up."""
MAX_REASONS = 500
"""Reasons that are listed."""
NO_REASON = "no reason given"
RARER = "rarer reasons"


def bias(columns: Columns, attributes: Sequence[str]) -> dict[str, Json]:
    """The rows that were removed, over all and for each value of some attributes; None is "not known".

    The rows of one attribute add up to the pool, and the reasons of one row to what was removed.
    """
    decision = columns.words("decision")
    dropped, held = decision.chosen(["drop"]), decision.chosen(["hold"])
    removed = dropped | held
    n, out = columns.rows, int(removed.sum())
    reasons = columns.once.get("stacked", lambda: stacked(columns.reasons(), removed))
    rows: list[Json] = []
    for name in attributes:
        rows += _rows(name, columns.attribute(name), columns.provenance(name), removed, reasons, out / max(1, n))
    overall: dict[str, Json] = {"n": n, "dropped": int(dropped.sum()), "held": int(held.sum()), "removed": out}
    overall |= {"rate": out / n if n else None, "interval": interval(out, n)}
    return {"overall": overall, "floor": FLOOR, "level": LEVEL, "rows": rows}


@lru_cache(maxsize=4096)
def _wilson(part: int, whole: int) -> tuple[float, float]:
    return wilson_interval(part, whole, LEVEL)


def interval(part: int, whole: int) -> list[Json]:
    """Wilson's interval of a share, as JSON."""
    return list(_wilson(part, whole))


def stacked(reasons: Lists, chosen: NDArray[np.bool_]) -> Codes:
    """The reasons of each chosen row as one word, "a + b" where there are several; -1 where it is not chosen."""
    words: dict[tuple[int, ...], int] = {}
    codes = np.full(len(chosen), -1, np.int32)
    rows = np.flatnonzero(chosen)
    lengths = np.diff(reasons.starts)[rows]
    for length in np.unique(lengths).tolist():
        mine = rows[lengths == length]
        table = reasons.codes[reasons.starts[mine][:, None] + np.arange(length)].astype(np.int64)
        kinds, inverse = np.unique(table, axis=0, return_inverse=True)
        numbers = [words.setdefault(tuple(kind), len(words)) for kind in kinds.tolist()]
        codes[mine] = np.array(numbers, np.int32)[inverse.ravel()]
    values = [" + ".join(reasons.values[code] for code in kind) or NO_REASON for kind in words]
    return _commonest(Codes(codes=codes, values=tuple(values)))


def _commonest(found: Codes) -> Codes:
    if len(found.values) <= STACKED + 1:
        return found
    counts = np.bincount(found.codes + 1, minlength=len(found.values) + 1)[1:]
    order = np.argsort(-counts, kind="stable")
    table = np.full(len(found.values) + 1, STACKED, np.int32)
    table[order[:STACKED]] = np.arange(STACKED)
    table[-1] = -1
    return Codes(codes=table[found.codes], values=(*(found.values[kind] for kind in order[:STACKED]), RARER))


def _rows(
    name: str, values: Codes, provenance: Codes, removed: NDArray[np.bool_], reasons: Codes, overall: float
) -> list[Json]:
    places = _largest(values)
    kinds = int(places.max(initial=0)) + 1
    place = places[values.codes.astype(np.int64) + 1]
    n = np.bincount(place, minlength=kinds)
    out = np.bincount(place[removed], minlength=kinds)
    why = _crossed(place[removed], reasons.codes[removed], kinds, reasons.values)
    who = _crossed(place, provenance.codes, kinds, provenance.values)
    labels: list[str | None] = [None] * kinds
    for code, value in enumerate(values.values):
        labels[places[code + 1]] = value
    rest = max(0, len(values.values) - VALUES)
    return [
        {
            "attribute": name,
            "value": f"{rest:,} more values" if rest and kind == kinds - 1 else labels[kind],
            **({"rest": True} if rest and kind == kinds - 1 else {}),
            **_rate(int(n[kind]), int(out[kind]), overall),
            "provenance": who_says(who[kind]),
            "reasons": {reason: count for reason, count in why[kind].items() if count},
        }
        for kind in np.argsort(-n, kind="stable").tolist()
        if n[kind] or kind == 0  # "not known" is always shown
    ]


def _largest(values: Codes) -> NDArray[np.int64]:
    """(values + 1,) place of each code + 1: 0 is "not known", then the largest, then one for all the others."""
    counts = np.array(list(values.counts().values()))[1:]
    order = np.argsort(-counts, kind="stable")
    places = np.zeros(len(counts) + 1, np.int64)
    places[order + 1] = np.minimum(np.arange(len(counts)), VALUES) + 1
    return places


def _crossed(
    place: NDArray[np.int64], codes: NDArray[np.signedinteger], kinds: int, names: Sequence[str]
) -> list[dict[str, int]]:
    width = len(names) + 1
    table = np.bincount(place * width + codes + 1, minlength=kinds * width).reshape(kinds, width)
    return [dict(zip(names, row, strict=True)) for row in table[:, 1:].tolist()]


def _rate(n: int, removed: int, overall: float) -> dict[str, Json]:
    low, high = _wilson(removed, n)
    claim = n >= FLOOR
    return {
        "n": n,
        "removed": removed,
        "rate": removed / n if n else None,
        "interval": [low, high],
        "claim": claim,
        "flagged": claim and not low <= overall <= high,
    }


def who_says(counts: Mapping[str, int]) -> str:
    """Who says a value, over its rows: one of PROVENANCES, or "mixed"; "unknown" for no row."""
    who = [name for name, count in Counter(counts).items() if count]
    return who[0] if len(who) == 1 else "mixed" if who else "unknown"


def by_reason(columns: Columns, pixels: NDArray[np.bool_]) -> dict[str, Json]:
    """Rows of each reason by decision, and how many of them have pixels; a row with two reasons counts for both."""
    reasons, decision = columns.reasons(), columns.words("decision")
    rows = np.repeat(np.arange(columns.rows), np.diff(reasons.starts))
    without = np.flatnonzero((np.diff(reasons.starts) == 0) & decision.chosen(["drop", "hold"]))
    rows = np.concatenate([rows, without])
    codes = np.concatenate([reasons.codes.astype(np.int64), np.full(len(without), len(reasons.values))])
    names = (*reasons.values, NO_REASON)
    parts = {
        "n": codes,
        "kept": codes[decision.chosen(["keep"])[rows]],
        "held": codes[decision.chosen(["hold"])[rows]],
        "dropped": codes[decision.chosen(["drop"])[rows]],
        "pixels": codes[pixels[rows]],
    }
    counts = {key: np.bincount(found, minlength=len(names)) for key, found in parts.items()}
    order = np.argsort(-counts["n"], kind="stable")[:MAX_REASONS].tolist()
    listed = [at for at in order if counts["n"][at]]
    return {
        "reasons": [{"reason": names[at], **{key: int(found[at]) for key, found in counts.items()}} for at in listed],
        "reasons_left_out": int((counts["n"] > 0).sum()) - len(listed),
    }
