"""Which release of a folder follows which: a release names the fingerprints of its parents."""

from collections.abc import Mapping
from pathlib import Path

from manifests.erasures import forebears, replacements
from manifests.release import ReleaseError, fingerprint, parse_release, read_release_bytes
from manifests.verify import VerifyError, find_releases


def newest_release(path: Path) -> Path:
    """The release in `path`: itself, or the one below its `releases/` that all the others there led to.

    Raises:
        VerifyError: there is none, or several that none of the others was made from; they are named.
        ReleaseError: a `release.json` breaks a rule.
        ErasureError: the record of an erasure is malformed.
    """
    found = find_releases(path)
    parents = _parents(found)
    older = {parent for _, above in parents.values() for parent in above}
    heads = [folder for folder, (own, _) in parents.items() if own not in older]
    if len(heads) != 1:
        names = ", ".join(str(folder) for folder in (heads or found)[:3])
        more = " …" * (len(heads or found) > 3)
        raise VerifyError(
            f"{path} holds {len(found)} releases: {names}{more}; none of them was made from all the others: "
            f"name one of them"
        )
    return heads[0]


def newer_releases(folder: Path) -> dict[Path, str]:
    """The releases beside `folder` that were made from it, straight or by others, with their fingerprints."""
    known = _parents(find_releases(folder.resolve().parent.parent))
    family = {known[folder.resolve()][0]} if folder.resolve() in known else set()
    later: dict[Path, str] = {}
    grown = True
    while grown:
        grown = False
        for path, (own, parents) in known.items():
            if own not in family and family & parents:
                family.add(own)
                later[path] = own
                grown = True
    return later


def _parents(folders: list[Path]) -> Mapping[Path, tuple[str, frozenset[str]]]:
    """Of each release its fingerprint and those of the releases behind it, as far as erasures removed some."""
    known = {}
    replaced = replacements(folders[0].resolve().parent.parent)
    for folder in folders:
        data = read_release_bytes(folder)
        own = fingerprint(data)
        try:
            known[folder.resolve()] = own, forebears(parse_release(data).parents, replaced) - {own}
        except ReleaseError as error:
            raise ReleaseError(f"{folder}: {error}") from error
    return known
