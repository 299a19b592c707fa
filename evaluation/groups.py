"""Videos with their scores, people and attributes, and the classes that they fall into.

The unit is the video (the mean over its frames), the cluster is the person: videos of one person err together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from evaluation.taxonomy import UNKNOWN, Category, Level, Taxonomy

Floats = NDArray[np.float64]
Codes = NDArray[np.intp]

CROSSING = " x "
_NAMED = 5  # names shown in a message before "and n more"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Videos:
    """The scored videos, as columns of n rows.

    Attributes:
        names: distinct, not empty; n >= 1.
        scores: metric -> (n,) float, mean over the frames of a video; NaN where it could not be measured.
        attributes: category -> class of each video; None or "unknown" where it is not known.
        subjects: person of each video, None where not known; or None: every video is a person of its own.
        ranges: metric -> least and greatest possible score; (0, 1) where not given.
    """

    names: Sequence[str]
    scores: Mapping[str, Floats]
    attributes: Mapping[str, Sequence[str | None]]
    subjects: Sequence[str | None] | None = None
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        columns: dict[str, Sequence[object] | Floats] = {
            f"scores[{metric!r}]": values for metric, values in self.scores.items()
        }
        columns |= {f"attributes[{name!r}]": values for name, values in self.attributes.items()}
        columns |= {} if self.subjects is None else {"subjects": self.subjects}
        for what, values in columns.items():
            if len(values) != len(self.names):
                raise ValueError(
                    f"{what} must have a value for each of the {len(self.names)} videos, got {len(values)}"
                )
        self._check_names()
        for name, values in columns.items():
            if not name.startswith("scores") and not all(v is None or (isinstance(v, str) and v) for v in values):
                raise ValueError(f"{name} must be non-empty text or None for each video")
        scores = {metric: self._checked(metric) for metric in self.scores}
        object.__setattr__(self, "scores", scores)

    def _check_names(self) -> None:
        if not (len(self.names) and self.scores):
            raise ValueError(f"at least one video and one metric are needed, got {len(self.names)}, {len(self.scores)}")
        seen: set[str] = set()
        for name in self.names:
            if not name or name in seen:
                raise ValueError(f"names of videos must be distinct and not empty, got {name!r} twice or empty")
            seen.add(name)
        strange = sorted(set(self.ranges) - set(self.scores))
        if strange:
            raise ValueError(f"ranges names {strange[0]!r}, which is no metric; the metrics are {sorted(self.scores)}")

    def _checked(self, metric: str) -> Floats:
        low, high = self.span(metric)
        if not low < high:
            raise ValueError(f"ranges[{metric!r}] must be (low, high) with low < high, got {(low, high)}")
        values = np.array(self.scores[metric], dtype=np.float64)
        if values.shape != (len(self.names),):
            raise ValueError(f"scores[{metric!r}] must have shape ({len(self.names)},), got {values.shape}")
        bad = np.flatnonzero((values < low) | (values > high))
        if len(bad):
            raise ValueError(
                f"{metric} of video {self.names[bad[0]]!r} is {values[bad[0]]}, outside [{low}, {high}]; "
                "correct it, or give the range of the metric in ranges"
            )
        values.setflags(write=False)
        return values

    def span(self, metric: str) -> tuple[float, float]:
        """Least and greatest possible score of a metric."""
        return self.ranges.get(metric, (0.0, 1.0))

    def people(self) -> Codes:
        """The person of each video as a number from 0, (n,); a video without a person is one of its own."""
        keys: Sequence[object] = [
            subject if subject is not None else ("video", name)
            for subject, name in zip(self.subjects or [None] * len(self.names), self.names, strict=True)
        ]
        numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
        return np.array([numbers[key] for key in keys], np.intp)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Grouping:
    """Videos split by a category, or by two: each video is in exactly one class.

    Attributes:
        category: the category, or two joined by " x ".
        level: "subject" where all categories are of that level.
        sensitive: whether any category is.
        classes: of the category, "unknown" last; for two categories all pairs of known classes, then the pairs with
            an unknown side that occur.
        known: of each class, whether no side is unknown.
        codes: (n,), the class of each video.
    """

    category: str
    level: Level
    sensitive: bool
    classes: tuple[str, ...]
    known: tuple[bool, ...]
    codes: Codes


def groupings(videos: Videos, taxonomy: Taxonomy) -> tuple[Grouping, ...]:
    """A grouping for every attribute of the videos, in the order of the taxonomy.

    Raises:
        ValueError: an attribute or class that the taxonomy does not have, or two videos of one person that contradict
            each other in an attribute of the person; the message names them.
    """
    given = {taxonomy.category(name).name for name in videos.attributes}
    chosen = [category for category in taxonomy.categories if category.name in given]
    return tuple(_grouping(videos, category) for category in chosen)


def crossings(found: Sequence[Grouping], pairs: Iterable[tuple[str, str]]) -> tuple[Grouping, ...]:
    """A grouping for every pair of categories that are both given."""
    given = {grouping.category: grouping for grouping in found}
    return tuple(_cross(given[a], given[b]) for a, b in pairs if a in given and b in given)


def _grouping(videos: Videos, category: Category) -> Grouping:
    values = [UNKNOWN if value is None else value for value in videos.attributes[category.name]]
    classes = (*category.observed(dict(zip(videos.names, values, strict=True))), UNKNOWN)
    if category.level == "subject" and videos.subjects is not None:
        _check_agreement(category.name, videos.names, videos.subjects, values)
    numbers = {name: number for number, name in enumerate(classes)}
    return Grouping(
        category=category.name,
        level=category.level,
        sensitive=category.sensitive,
        classes=classes,
        known=tuple(name != UNKNOWN for name in classes),
        codes=np.array([numbers[value] for value in values], np.intp),
    )


def _check_agreement(
    category: str, names: Sequence[str], subjects: Sequence[str | None], values: Sequence[str]
) -> None:
    """Two known values of one person contradict each other; an unknown value beside a known one does not."""
    first: dict[str, dict[str, str]] = {}
    for name, subject, value in zip(names, subjects, values, strict=True):
        if subject is not None and value != UNKNOWN:
            first.setdefault(subject, {}).setdefault(value, name)
    wrong = [(subject, found) for subject, found in first.items() if len(found) > 1]
    if wrong:
        shown = "; ".join(
            f"subject {subject!r}: " + ", ".join(f"{value!r} in video {name!r}" for value, name in found.items())
            for subject, found in wrong[:_NAMED]
        )
        raise ValueError(
            f"{category} belongs to the person and must be the same in all their videos, but {shown}"
            f"{more(len(wrong), 'subjects')}; correct the attribute or the subject"
        )


def more(count: int, what: str) -> str:
    """The end of a message that names the first few of `count` things."""
    return f" and {count - _NAMED} more {what}" if count > _NAMED else ""


def listed(names: Sequence[str]) -> str:
    """The first few names, quoted, and how many more there are."""
    return ", ".join(map(repr, names[:_NAMED])) + more(len(names), "videos")


def _cross(a: Grouping, b: Grouping) -> Grouping:
    pairs = a.codes * len(b.classes) + b.codes
    present = set(np.unique(pairs).tolist())
    both = [(i, j) for i in range(len(a.classes)) for j in range(len(b.classes))]
    kept = [(i, j) for i, j in both if a.known[i] and b.known[j]]
    kept += [(i, j) for i, j in both if not (a.known[i] and b.known[j]) and i * len(b.classes) + j in present]
    numbers = np.zeros(len(both), np.intp)
    for number, (i, j) in enumerate(kept):
        numbers[i * len(b.classes) + j] = number
    return Grouping(
        category=a.category + CROSSING + b.category,
        level="subject" if a.level == b.level == "subject" else "video",
        sensitive=a.sensitive or b.sensitive,
        classes=tuple(a.classes[i] + CROSSING + b.classes[j] for i, j in kept),
        known=tuple(a.known[i] and b.known[j] for i, j in kept),
        codes=numbers[pairs],
    )
