"""The release that a command is about."""

from __future__ import annotations

from pathlib import Path

from manifests.erasures import ErasureError
from manifests.lineage import newest_release
from manifests.release import ReleaseError
from manifests.verify import VerifyError
from pipeline.errors import InputError


def one_release(path: Path) -> Path:
    """The release in a folder: itself, or the newest of a run's output.

    Raises:
        InputError: there is none, or there are several of which none follows from the others.
    """
    try:
        return newest_release(path)
    except ReleaseError as error:
        raise InputError(f"{error}; 'curate verify' says what is damaged") from error
    except (VerifyError, ErasureError) as error:
        raise InputError(str(error)) from error
