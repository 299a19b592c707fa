"""What a run must not read again: the list that erasures have left in its output."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from manifests.erasures import FOLDER, KEY, SUPPRESSED, ErasureError, Suppression, parse_suppression
from pipeline import storage
from pipeline.errors import InputError, StageError
from pipeline.stage import not_identity
from pipeline.step import Weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Suppressed:
    """The list of erased sources and frames, for workers.

    Attributes:
        listed: the file of the list and its sha256: another list is another stage.
        key: where the key of its hashes lies.
        distance: largest Hamming distance of difference hashes at which a frame counts as an erased one.
    """

    listed: Weights
    key: str = not_identity()
    distance: int

    def open(self) -> Suppression:
        """The list itself.

        Raises:
            StageError: it is another than the run began with, damaged, or its key is missing.
        """
        data = storage.read_bytes(self.listed.uri)
        if hashlib.sha256(data).hexdigest() != self.listed.sha256:
            raise StageError(f"{self.listed.uri} has changed while the run read its inputs; run again")
        try:
            return parse_suppression(data, storage.read_bytes(self.key), self.listed.uri)
        except ErasureError as error:
            raise StageError(str(error)) from error


def suppressed_of(output: str, distance: int) -> Suppressed | None:
    """The list of an output folder; None where nothing was ever erased.

    Raises:
        InputError: it is damaged, or its key is missing or another.
    """
    uri, key = (storage.join(output, FOLDER, name) for name in (SUPPRESSED, KEY))
    if not storage.exists(uri):
        return None
    if not storage.exists(key):
        raise InputError(f"{key} is missing: without it nobody can tell what was erased; put it back from a backup")
    listed = Weights(uri=uri, sha256=hashlib.sha256(storage.read_bytes(uri)).hexdigest())
    suppressed = Suppressed(listed=listed, key=key, distance=distance)
    try:
        suppressed.open()
    except StageError as error:
        raise InputError(str(error)) from error
    return suppressed
