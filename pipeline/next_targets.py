"""What the next selection should take more of: a weight per class of each attribute, and the config that says so.

Letters: for class v of an attribute, n judged labels; r_v the share of corrupt ones, l_v the share that was dropped or
held; r and l the same shares of all judged labels.

    r_v = (sum of q + 4 r) / (n + 4)        or (bad + 4 r) / (audited + 4), where at least 8 are audited
    l_v = (lost + 4 l) / (n + 4)
    weight_v = clip((r_v + l_v + k) / (r + l + k), 1/2, 3)        k = .05

The shares are means of Beta posteriors whose prior is four labels like the whole: a class of which little was seen
weighs about 1. Where labels are wrong or lost more frames are wanted, for what remains must still teach the class.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.assign import balanced_attributes
from pipeline.attributes import COMPUTED, Given
from pipeline.mask_attributes import MASK_ATTRIBUTES
from pipeline.quota import OF_SOURCE, OTHERS, UNKNOWN, SelectConfig

PRIOR = 4.0
AUDITED = 8
SOFTENING = 0.05
LEAST, MOST = 0.5, 3.0
NOTABLE = 0.1

_BARE = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class JudgedLabels:
    """What the judge says of N labels.

    Attributes:
        q: (N,) float64 in [0, 1], the probability that the label is corrupt.
        lost: (N,) bool, whether it was dropped or held.
        audited: (N,) bool, whether a person has drawn the mask.
        bad: (N,) bool, whether that person found the label corrupt.
    """

    q: NDArray[np.float64]
    lost: NDArray[np.bool_]
    audited: NDArray[np.bool_]
    bad: NDArray[np.bool_]

    def __post_init__(self) -> None:
        shapes = {values.shape for values in (self.q, self.lost, self.audited, self.bad)}
        if shapes != {(len(self.q),)}:
            raise ValueError(f"q, lost, audited and bad must have one shape (N,), got {sorted(shapes)}")
        if not ((self.q >= 0) & (self.q <= 1)).all():
            raise ValueError("q must be in [0, 1]; is the release damaged?")


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassNeed:
    """How much more of a class the next selection wants.

    Attributes:
        attribute: its attribute.
        name: the class.
        labels: judged ones.
        audited: those of them that a person has checked.
        noise: r_v.
        lost: l_v.
        weight: weight_v, in [1/2, 3].
    """

    attribute: str
    name: str
    labels: int
    audited: int
    noise: float
    lost: float
    weight: float


def class_needs(
    labels: JudgedLabels, attributes: Mapping[str, tuple[Sequence[str], NDArray[np.int64]]]
) -> list[ClassNeed]:
    """The need of every class, sorted by attribute and class; equal for any order of the labels up to rounding.

    Args:
        labels: N judged labels.
        attributes: name -> (names of the classes, (N,) number of the class; -1 where it is unknown). A class that is
            called "unknown" or "*" is left out: a target cannot name it as a class.
    """
    if not len(labels.q):
        return []
    rate, loss = float(labels.q.mean()), float(labels.lost.mean())
    return [
        need
        for attribute, (names, member) in sorted(attributes.items())
        for need in _needs(attribute, names, member, labels, rate, loss)
    ]


def _needs(
    attribute: str,
    names: Sequence[str],
    member: NDArray[np.int64],
    labels: JudgedLabels,
    rate: float,
    loss: float,
) -> Iterator[ClassNeed]:
    known = member >= 0

    def sums(values: NDArray[Any]) -> NDArray[np.float64]:
        return np.bincount(member[known], values[known].astype(np.float64), len(names)).astype(np.float64)

    count, audited = sums(np.ones(len(member))), sums(labels.audited)
    seen = audited >= AUDITED
    wrong = np.where(seen, sums(labels.audited & labels.bad), sums(labels.q))
    noise = (wrong + PRIOR * rate) / (np.where(seen, audited, count) + PRIOR)
    lost = (sums(labels.lost) + PRIOR * loss) / (count + PRIOR)
    weight = np.clip((noise + lost + SOFTENING) / (rate + loss + SOFTENING), LEAST, MOST)
    for i in sorted(range(len(names)), key=lambda i: names[i]):
        if count[i] and names[i] not in (UNKNOWN, OTHERS):
            yield ClassNeed(
                attribute=attribute,
                name=names[i],
                labels=int(count[i]),
                audited=int(audited[i]),
                noise=float(noise[i]),
                lost=float(lost[i]),
                weight=float(weight[i]),
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class NextTargets:
    """Targets of the next selection.

    Attributes:
        targets: all of ``select.targets``: those that were there, and the new ones.
        changed: attributes whose target is new or another than before.
        notes: attributes that want another target and did not get it, and why; plain sentences.
    """

    targets: Mapping[str, str | Mapping[str, float]]
    changed: tuple[str, ...]
    notes: tuple[str, ...]


def next_targets(needs: Sequence[ClassNeed], select: SelectConfig, given: Sequence[str]) -> NextTargets:
    """The targets of ``select``, multiplied by the weights of the classes.

    An attribute changes if the weight of one of its classes is more than .1 from 1. A class that is not listed keeps
    what it had, 1 where there was no table; so does what is unknown.

    Args:
        needs: of all classes.
        select: settings of the next selection.
        given: attributes that were given with ``--attributes``.

    Raises:
        InputError: ``select`` names an attribute that no selection with these settings can balance.
    """
    notable = sorted({need.attribute for need in needs if abs(need.weight - 1) > NOTABLE})
    balanced = _balanced(select, given)
    targets: dict[str, str | Mapping[str, float]] = dict(select.targets)
    changed: list[str] = []
    notes: list[str] = []
    for name in notable:
        before = select.targets.get(name, "uniform")
        if name not in balanced:
            notes.append(f"{name} wants another target and is not balanced ({_remedy(name, select)})")
        elif before == "proportional":
            notes.append(
                f"{name} stays proportional to the pool as it was set: a table of weights cannot follow a pool"
            )
        else:
            targets[name] = _table({} if isinstance(before, str) else before, [n for n in needs if n.attribute == name])
            changed.append(name)
    return NextTargets(targets=targets, changed=tuple(changed), notes=tuple(notes))


def _table(before: Mapping[str, float], needs: Sequence[ClassNeed]) -> dict[str, float]:
    old = before or {OTHERS: 1.0}
    new = {n.name: float(f"{old.get(n.name, old.get(OTHERS, 0.0)) * n.weight:.4g}") for n in needs}
    return {**old, **new}


def _balanced(select: SelectConfig, given: Sequence[str]) -> set[str]:
    """Attributes that a selection with these settings balances in the end, its ``--attributes`` being as before."""
    own = {*COMPUTED, *MASK_ATTRIBUTES}
    pairs = {name for pair in select.pairs for name in pair}
    named = {*select.attributes, *pairs, *(name for name in select.targets if "+" not in name)}
    names = tuple(sorted({*given, *(named - own)}))
    return set(balanced_attributes(select, Given(names=names, values={}), masks=True)) - {OF_SOURCE}


def _remedy(name: str, select: SelectConfig) -> str:
    if name in MASK_ATTRIBUTES and select.rounds == 1:
        return "masks tell it: it needs select.rounds = 2"
    return "name it in select.attributes"


# ── TOML ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def render_toml(table: Mapping[str, Any]) -> str:
    """A table of plain values as TOML: what ``tomllib`` reads back as an equal table.

    Raises:
        ValueError: a value is no text, number, truth value, list or table.
    """
    return "\n".join(_section((), table)).strip() + "\n"


def _section(path: tuple[str, ...], table: Mapping[str, Any]) -> Iterator[str]:
    below = {key: value for key, value in table.items() if isinstance(value, Mapping)}
    if path and (len(below) < len(table) or not table):
        yield f"\n[{'.'.join(map(_key, path))}]"
    for key, value in table.items():
        if key not in below:
            yield f"{_key(key)} = {_value(value)}"
    for key, value in below.items():
        yield from _section((*path, key), value)


def _key(name: str) -> str:
    return name if _BARE.fullmatch(name) else _text(name)


def _text(value: str) -> str:
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_key(key)} = {_value(item)}' for key, item in value.items())}}}"
    raise ValueError(f"TOML cannot hold {type(value).__name__} {value!r}")
