"""What an exported student says of itself, whatever the format: names and values, all of them text.

| name | value |
|---|---|
| ``format`` | ``curate-student-1`` |
| ``side`` | images are seen at about side² pixels |
| ``fit`` | in which sizes, ``students.data.canonical_sizes``; "aspect" where it is not stated |
| ``in_channels`` | 3: R, G, B in [0, 1]; 4: Y, U, V and the previous mask (``students.prior.network_input``) |
| ``padding`` | what convolutions see outside of a map |
| ``precision`` | ``float32`` or ``int8`` |
| ``student`` | JSON of the shape, ``students.model.config_to_json`` |

Beside these stands what the caller adds, such as the digest of the student's file and what it says of its training.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from students.data import Fit, canonical_sizes
from students.model import FORMAT, StudentConfig, config_from_json, config_to_json

Precision = Literal["float32", "int8"]
OWN = ("format", "side", "fit", "in_channels", "padding", "precision", "student")
MOST_SIDE = 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """What must be known to run an exported student.

    Attributes:
        side: Images are seen at about side² pixels.
        fit: In which sizes.
        config: The student's shape.
        precision: Of weights and arithmetic.
    """

    side: int
    config: StudentConfig
    precision: Precision
    fit: Fit = "aspect"

    def __post_init__(self) -> None:
        if self.side > MOST_SIDE:
            raise ValueError(f"side must be <= {MOST_SIDE}, got {self.side}")
        canonical_sizes(self.side, self.fit)
        if self.precision not in get_args(Precision):
            raise ValueError(f"precision must be one of {get_args(Precision)}, got {self.precision!r}")


def card_values(card: Card, metadata: Mapping[str, str]) -> dict[str, str]:
    """The names and values that are written, sorted by name.

    Raises:
        ValueError: If the metadata uses a name of the card.
    """
    if reserved := set(OWN) & set(metadata):
        raise ValueError(f"metadata must not use the reserved names {sorted(reserved)}")
    own = {
        "format": FORMAT,
        "side": str(card.side),
        "fit": card.fit,
        "in_channels": str(card.config.in_channels),
        "padding": card.config.padding,
        "precision": card.precision,
        "student": config_to_json(card.config),
    }
    return dict(sorted({**metadata, **own}.items()))


def stored_values(text: str | bytes) -> dict[str, str]:
    """Names and values of the JSON that a file holds, unchecked; see ``read_card``.

    Raises:
        ValueError: If it is no JSON object.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its card must be a JSON object, it is no JSON: {error!s:.200}") from error
    if not isinstance(values, dict):
        raise ValueError(f"its card must be a JSON object, got {type(values).__name__}")
    return {str(key): str(value) for key, value in values.items()}


def checkpoint_card(values: Mapping[str, str]) -> Card:
    """The card of a checkpoint's metadata, which leaves channels and padding to its shape; it is float32.

    Raises:
        ValueError: See ``read_card``.
    """
    config = config_from_json(values.get("student", ""))
    own = {"in_channels": str(config.in_channels), "padding": config.padding, "precision": "float32"}
    return read_card({**values, **own})


def read_card(values: Mapping[str, str]) -> Card:
    """The card of names and values that were read from a file.

    Raises:
        ValueError: If they are no student's, or contradict each other.
    """
    if values.get("format") != FORMAT:
        raise ValueError(f"its metadata must state format {FORMAT!r}, got {values.get('format')!r:.40}")
    text = values.get("side", "")
    if not (text.isascii() and text.isdigit() and 64 <= int(text[:9]) <= MOST_SIDE):
        raise ValueError(f"its metadata must state the side, 64..{MOST_SIDE}, got {text!r:.40}")
    config = config_from_json(values.get("student", ""))
    precision = values.get("precision", "")
    if precision not in get_args(Precision):
        raise ValueError(f"its precision must be one of {get_args(Precision)}, got {precision!r:.40}")
    for name, wanted in (("in_channels", str(config.in_channels)), ("padding", config.padding)):
        if values.get(name) != wanted:
            raise ValueError(f"its metadata {name} must be {wanted}, as its shape says, got {values.get(name)!r:.40}")
    return Card(side=int(text), config=config, precision=precision, fit=values.get("fit", "aspect"))  # type: ignore[arg-type]
