"""Writes ``docs/config.md`` from the docstrings of the config's dataclasses: ``python docs/config_page.py``."""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from pathlib import Path
from typing import Any

from pipeline.config import Config

HEAD = """# Settings

`--config curate.toml` takes these sections; every key has the default shown. Unknown keys and impossible values are
refused. This page is written by `python docs/config_page.py`.
"""


def page() -> str:
    """The text of the page."""
    return HEAD + "".join(_section(f.name, getattr(Config(), f.name)) for f in dataclasses.fields(Config))


def _section(name: str, value: Any) -> str:
    notes = {key: note for kind in reversed(type(value).__mro__) for key, note in _notes(kind).items()}
    rows, nested = [], ""
    for field in dataclasses.fields(value):
        item = getattr(value, field.name)
        if dataclasses.is_dataclass(item):
            nested += _section(f"{name}.{field.name}", item)
        else:
            rows.append(f"| `{field.name}` | `{_toml(item)}` | {notes.get(field.name, '')} |\n")
    table = "\n| key | default | |\n|---|---|---|\n" + "".join(rows) if rows else ""
    return f"\n## [{name}]\n{table}{nested}"


def _notes(kind: type) -> dict[str, str]:
    """What the ``Attributes:`` part of a dataclass's docstring says of each field."""
    text = inspect.cleandoc(kind.__doc__ or "")
    part = text.partition("Attributes:\n")[2]
    found: dict[str, str] = {}
    name = ""
    for line in part.splitlines():
        match = re.match(r"^ {4}(\w+): (.*)", line)
        if match:
            name = match[1]
            found[name] = match[2]
        elif line.startswith("     ") and name:
            found[name] += " " + line.strip()
        elif line and not line.startswith(" "):
            break
    return {key: note.replace("|", "\\|").replace("``", "`") for key, note in found.items()}


def _toml(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(v) for v in value) + "]"
    return f'"{value}"' if isinstance(value, str) else str(value)


if __name__ == "__main__":
    target = Path(__file__).parent / "config.md"
    target.write_text(page(), "utf-8")
    sys.stdout.write(f"{target}\n")
