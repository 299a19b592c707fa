"""Where what describes a release is written: beside it, never into it, whole or not at all."""

import os
import tempfile
from pathlib import Path


class PaperError(ValueError):
    """A description that cannot be written there; the message says why and what to do."""


def paper_path(folder: Path, output: Path | None, name: str) -> Path:
    """Where a description of the release in `folder` goes.

    Args:
        folder: of the release.
        output: the file; None for `<root>/reports/<name of the release folder>/<name>`.
        name: of the file; in the release's own folder the only one that may be written, which changes nothing of it.

    Raises:
        PaperError: `output` is a folder, or would be another file in the release.
    """
    home = folder.resolve()
    path = (output or home.parent.parent / "reports" / home.name / name).absolute()
    if path.is_dir():
        raise PaperError(f"{path} is a folder; name a file")
    if path.resolve().is_relative_to(home) and path.resolve() != home / name:
        raise PaperError(f"{path} lies in the release, which nobody may change; name another file (there only {name})")
    return path


def write_paper(path: Path, data: bytes) -> None:
    """Write a file under a temporary name and rename it.

    Raises:
        OSError: it cannot be written; what was there before is still there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
