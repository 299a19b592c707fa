"""Errors a user can act on: the command prints their message as one line, never a traceback.

::

    CurateError            the run failed, exit code 1
    ├── UsageError         the command line or config is wrong, exit code 2
    ├── InputError         what the user handed in cannot be used
    ├── StorageError       a file or folder cannot be read or written
    └── StageError         a stage could not finish; what was committed stays
"""

import difflib
from collections.abc import Iterable


class CurateError(Exception):
    """The run failed; the message names the thing, the rule, the value found, and the remedy."""

    exit_code = 1


class UsageError(CurateError):
    """The command line or the config file is wrong."""

    exit_code = 2


class InputError(CurateError):
    """What the user handed in (videos, labels, attributes, checkpoints) cannot be used."""


class StorageError(CurateError):
    """A file or folder cannot be read or written."""


class StageError(CurateError):
    """A stage could not finish; what it had committed stays and is not redone."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``; did you mean 'x'?`` for the nearest known word, or the list of known words if none is near."""
    known = sorted(known)
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if near:
        return f"; did you mean '{near[0]}'?"
    return f"; known are {', '.join(known)}" if len(known) <= 30 else ""
