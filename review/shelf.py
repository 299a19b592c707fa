"""The releases of one root beside the one under review: which there are, and which were made from it."""

import os
import threading
from dataclasses import dataclass
from pathlib import Path

from manifests.release import RELEASE_FILE, ReleaseError
from manifests.units import read_listing

State = tuple[int, int, int]
"""Inode, modification time in nanoseconds and size of a file: another state, other bytes."""


def file_state(path: Path) -> State | None:
    """The state of a file; None where it is gone or cannot be looked at."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


@dataclass(frozen=True, kw_only=True, slots=True)
class Volume:
    """A release of the root.

    Attributes:
        folder: of the release.
        name: of the folder.
        fingerprint: of the release.
        parents: fingerprints of the releases that it was made from.
        rows: kept, held and dropped.
    """

    folder: Path
    name: str
    fingerprint: str
    parents: tuple[str, ...]
    rows: int


class Shelf:
    """The releases of one root; looked at anew each time, read anew only where `release.json` has changed."""

    def __init__(self, release_folder: Path) -> None:
        self._folder = release_folder.resolve().parent
        self._known: dict[Path, tuple[State, Volume | None]] = {}
        self._lock = threading.Lock()

    def volumes(self) -> list[Volume]:
        """The releases, by name; folders without a committed and readable release are left out."""
        with self._lock:
            found = {folder: self._volume(folder) for folder in self._folders()}
            self._known = {folder: self._known[folder] for folder in found if folder in self._known}
        return [volume for volume in found.values() if volume]

    def find(self, fingerprint: str) -> Volume | None:
        """The release with this fingerprint; None where there is none in this root."""
        return next((volume for volume in self.volumes() if volume.fingerprint == fingerprint), None)

    def newer(self, fingerprint: str) -> list[Volume]:
        """The releases that were made from the one with this fingerprint, directly or through others."""
        volumes, made = self.volumes(), {fingerprint}
        found: list[Volume] = []
        while more := [volume for volume in volumes if volume not in found and made.intersection(volume.parents)]:
            found += more
            made |= {volume.fingerprint for volume in more}
        return found

    def _folders(self) -> list[Path]:
        try:
            with os.scandir(self._folder) as entries:
                return sorted(Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False))
        except OSError:
            return []

    def _volume(self, folder: Path) -> Volume | None:
        state = file_state(folder / RELEASE_FILE)
        if state is None:
            return None
        known = self._known.get(folder)
        if known is None or known[0] != state:
            self._known[folder] = known = state, _read(folder)
        return known[1]


def _read(folder: Path) -> Volume | None:
    try:
        release, fingerprint = read_listing(folder)
    except ReleaseError:
        return None
    counts = release.counts
    return Volume(
        folder=folder,
        name=folder.name,
        fingerprint=fingerprint,
        parents=release.parents,
        rows=counts.kept + counts.held + counts.dropped,
    )
