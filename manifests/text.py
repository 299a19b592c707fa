"""Words of strangers on their way to a person: none may steer a terminal, or turn the direction of writing.

A name, a class or a path comes with the data. Shown as it is, it could colour and overwrite what a command says
(ECMA-48 escape sequences), or let a reader see letters in another order than they are in (Unicode UAX #9).
"""


def clean(text: str, *, numbered: bool = False) -> str:
    """Text on one line without control characters, lone surrogates and marks that turn the direction of what follows.

    Args:
        text: of any origin.
        numbered: whether each of them becomes its number, such as U+202E, rather than a middle dot.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else f"U+{ord(c):04X}" if numbered else "·" for c in text)


def cut(text: str, most: int = 200) -> str:
    """The beginning of a text: at most so many characters, and an ellipsis where there were more."""
    return text if len(text) <= most else f"{text[:most]}…"
