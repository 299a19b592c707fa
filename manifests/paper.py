"""Where what describes a release is written: beside the releases, never into one, whole or not at all."""

from pathlib import Path

from manifests.disk import put
from manifests.release import RELEASE_FILE


class PaperError(ValueError):
    """A description that cannot be written; the message says why and what to do."""


class PlaceError(PaperError):
    """A place where nothing may be written."""


def outside_releases(path: Path, *, but: Path | None = None) -> Path:
    """The place of a file or folder, links followed, which lies in no release.

    Args:
        path: that is to be written.
        but: the one place in a release that may be written all the same, links followed; None for none.

    Raises:
        PlaceError: it is a release or lies in one: `release.json` is there or in a folder above, sound or not.
    """
    try:
        place = path.resolve()
    except (OSError, RuntimeError) as error:  # links in a circle
        raise PlaceError(f"{path} leads nowhere: {error}; name another place") from error
    if place != but:
        for home in (place, *place.parents):
            if (home / RELEASE_FILE).is_file():
                allowed = f" (there only {but.name})" if but is not None and but.parent == home else ""
                raise PlaceError(f"{path} lies in the release {home}, which nobody may change; name another{allowed}")
    return place


def file_place(path: Path, *, but: Path | None = None) -> Path:
    """The place of a file, links followed, where one may be written or replaced.

    Args:
        path: of the file.
        but: see `outside_releases`.

    Raises:
        PlaceError: it is a folder or a device, or lies in a release.
    """
    place = outside_releases(path, but=but)
    if place.is_dir():
        raise PlaceError(f"{path} is a folder; name a file")
    if place.exists() and not place.is_file():
        raise PlaceError(f"{path} is a device or a pipe; name a file")
    return place


def paper_path(folder: Path, output: Path | None, name: str) -> Path:
    """Where a description of the release in `folder` goes.

    Args:
        folder: of the release.
        output: the file; None for `<root>/reports/<name of the release folder>/<name>`.
        name: of the file; in the release's own folder the only one that may be written, which changes nothing of it.

    Raises:
        PlaceError: `output` is a folder or a device, or lies in this or another release.
    """
    home = folder.resolve()
    return file_place(output or home.parent.parent / "reports" / home.name / name, but=home / name)


def write_paper(path: Path, data: bytes) -> None:
    """Write a file whole and durable, in place of what was there.

    Raises:
        PaperError: it cannot be written; what was there before is still there.
    """
    try:
        put(path, data)
    except OSError as error:
        raise PaperError(
            f"{path} cannot be written: {error.strerror or error}; make room or get the right to write there, or name "
            f"another place"
        ) from error
