"""The commands about a finished release: look, compare, decide, describe, forget. Each loads what it needs, no more."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from rich.console import Console

from manifests.paper import PlaceError
from pipeline import desk_flags
from pipeline.errors import CurateError, UsageError

COMMANDS = {
    "apply-reviews": ("pipeline.desk_change", "apply"),
    "croissant": ("pipeline.desk_pages", "croissant"),
    "datacard": ("pipeline.desk_pages", "datacard"),
    "diff": ("pipeline.desk_pages", "diff"),
    "export-labels": ("pipeline.desk_change", "export_labels"),
    "forget": ("pipeline.desk_forget", "forget"),
    "import-labels": ("pipeline.desk_change", "import_labels"),
    "report": ("pipeline.desk_pages", "report"),
    "review": ("pipeline.desk_serve", "serve"),
    "review sign": ("pipeline.desk_review", "sign"),
    "review verify": ("pipeline.desk_review", "verify_log"),
    "verify": ("pipeline.desk_pages", "verify"),
}
"""Of each command the module and the function that does it."""


def run(argv: Sequence[str], console: Console) -> int:
    """Parses the command line and runs its command; returns the exit code."""
    values = desk_flags.parse(argv)
    module, function = COMMANDS[values.command]
    try:
        loaded = importlib.import_module(module)
    except ModuleNotFoundError as error:
        lacking = (error.name or "").split(".")[0]
        if lacking not in ("starlette", "uvicorn"):
            raise
        told = f"'curate review' needs {lacking}; install it with: pip install 'curate[review]'"
        raise UsageError(told) from error
    try:
        code: int = getattr(loaded, function)(values, console)
    except PlaceError as error:
        raise UsageError(str(error)) from error
    except ValueError as error:  # what the floors below raise of files and values they refuse
        raise CurateError(str(error)) from error
    return code
