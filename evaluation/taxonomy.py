"""The attribute taxonomy: by which properties of people and scenes the accuracy of a model is compared.

The product's own taxonomy is `taxonomy.json` beside this file. A user adds attributes of their own with
`Taxonomy.extended`; a category that is `open` takes the classes it finds.
"""

from __future__ import annotations

import difflib
import functools
import importlib.resources
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Literal, get_args

Level = Literal["subject", "video"]
Obtained = Literal["annotated", "computed"]

UNKNOWN = "unknown"
"""The row of the videos of which a category is not known; never a class of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Category:
    """One attribute and its classes.

    Attributes:
        name: an identifier of at most 64 characters.
        level: "subject" where all videos of one person must agree (skin tone), else "video" (lighting).
        classes: distinct, in the order of the tables; at least one unless `open`.
        sensitive: whether it describes a protected property of a person; such a category is for evaluation and
            coverage alone and never enters training.
        obtained: "annotated" by people, or "computed" from pixels and true masks.
        open: whether classes that are not listed are taken as found, behind the listed ones, sorted.
        note: how the classes are told apart.
    """

    name: str
    level: Level = "video"
    classes: tuple[str, ...] = ()
    sensitive: bool = False
    obtained: Obtained = "annotated"
    open: bool = False
    note: str = ""

    def __post_init__(self) -> None:
        if not self.name.isidentifier() or len(self.name) > 64:
            raise ValueError(f"category name must be letters, digits and underscores, at most 64, got {self.name!r}")
        for field, allowed in (("level", get_args(Level)), ("obtained", get_args(Obtained))):
            if getattr(self, field) not in allowed:
                raise ValueError(f"{self.name}.{field} must be one of {allowed}, got {getattr(self, field)!r}")
        if not (self.classes or self.open):
            raise ValueError(f"{self.name} has no classes; list them, or set open to take those that are found")
        if len(set(self.classes)) < len(self.classes) or not all(self.classes):
            raise ValueError(f"{self.name}.classes must be distinct and not empty, got {list(self.classes)}")
        if UNKNOWN in self.classes:
            raise ValueError(f"{self.name}.classes must not list {UNKNOWN!r}: leave the value empty instead")

    def observed(self, values: Mapping[str, str | None]) -> tuple[str, ...]:
        """The classes of a table: those listed, and for an open category the others that occur, sorted.

        Args:
            values: name of a video -> its class; None or "unknown" where it is not known.

        Raises:
            ValueError: a value that is no class; the message names the video and the nearest class.
        """
        strange = {value: video for video, value in values.items() if value not in (None, UNKNOWN, *self.classes)}
        if strange and not self.open:
            value, video = next(iter(strange.items()))
            raise ValueError(
                f"{self.name} of video {video!r} is {value!r}, which is no class; the nearest is "
                f"{nearest(str(value), self.classes)!r}, the classes are {', '.join(self.classes)} (empty if unknown)"
            )
        return (*self.classes, *sorted(map(str, strange)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Taxonomy:
    """Categories of distinct names, in the order of the tables."""

    categories: tuple[Category, ...]

    def __post_init__(self) -> None:
        names = [category.name for category in self.categories]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"the taxonomy has more than one category {twice[0]!r}; rename one")

    def category(self, name: str) -> Category:
        """The category of a name.

        Raises:
            ValueError: there is none; the message names the nearest and how to add it.
        """
        for category in self.categories:
            if category.name == name:
                return category
        near = nearest(name, [category.name for category in self.categories])
        raise ValueError(
            f"the taxonomy has no category {name!r}; the nearest is {near!r}. "
            "An attribute of your own is added with Taxonomy.extended(Category(name=..., open=True))"
        )

    def extended(self, *categories: Category) -> Taxonomy:
        """This taxonomy with further categories behind its own.

        Raises:
            ValueError: a name that it has already.
        """
        return Taxonomy(categories=(*self.categories, *categories))


def parse_taxonomy(text: str) -> Taxonomy:
    """A taxonomy from JSON: a list of objects with the fields of `Category`, of which only `name` is required.

    Raises:
        ValueError: no JSON list of objects, an unknown or missing field, a field of a wrong type, or a bad category.
    """
    try:
        rows = json.loads(text)
    except ValueError as error:
        raise ValueError(f"the taxonomy is no JSON: {error}") from error
    if not isinstance(rows, list):
        raise ValueError(f"the taxonomy must be a JSON list of categories, got {type(rows).__name__}")
    return Taxonomy(categories=tuple(_category(row) for row in rows))


@functools.cache
def default_taxonomy() -> Taxonomy:
    """The product's own taxonomy: 43 categories, 151 classes, 8 categories sensitive."""
    return parse_taxonomy((importlib.resources.files("evaluation") / "taxonomy.json").read_text("utf-8"))


def nearest(name: str, known: Iterable[str]) -> str:
    """The most similar of the known names; an empty string where none is known."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)), "")


def _category(row: object) -> Category:
    kinds = {field.name: bool if field.name in ("sensitive", "open") else str for field in fields(Category)}
    if not isinstance(row, dict) or "name" not in row:
        raise ValueError(f"a category of the taxonomy must be an object with a name, got {row!r}")
    for key, value in row.items():
        if key not in kinds:
            raise ValueError(f"category {row['name']!r} has no field {key!r}; the nearest is {nearest(key, kinds)!r}")
        if key != "classes" and not isinstance(value, kinds[key]):
            raise ValueError(f"field {key!r} of category {row['name']!r} must be {kinds[key].__name__}, got {value!r}")
    classes = row.get("classes", [])
    if not isinstance(classes, list) or not all(isinstance(value, str) for value in classes):
        raise ValueError(f"classes of category {row['name']!r} must be a list of strings, got {classes!r}")
    return Category(**{**row, "classes": tuple(classes)})
