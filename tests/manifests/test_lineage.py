from pathlib import Path

import pytest

from manifests.lineage import newer_releases, newest_release
from manifests.release import fingerprint
from manifests.verify import VerifyError
from tests.review import releases


def _made(root: Path, count: int, *parents: Path) -> Path:
    names = tuple(fingerprint((parent / "release.json").read_bytes()) for parent in parents)
    return releases.write(root, releases.figures(count), parents=names)


def test_the_newest_release_is_the_one_that_all_others_led_to(tmp_path: Path) -> None:
    first = _made(tmp_path, 6)
    assert newest_release(tmp_path) == newest_release(first) == first.resolve()
    second = _made(tmp_path, 7, first)
    third = _made(tmp_path, 8, second)
    assert newest_release(tmp_path) == third.resolve()
    assert newest_release(first) == first.resolve(), "a release that is named is taken as it is"


def test_releases_that_nothing_joins_are_named_and_none_is_taken(tmp_path: Path) -> None:
    made = [_made(tmp_path, 6), _made(tmp_path, 7)]
    with pytest.raises(VerifyError, match=r"holds 2 releases: .*none of them was made from all the others") as caught:
        newest_release(tmp_path)
    assert all(str(folder) in str(caught.value) for folder in made)


def test_newer_releases_are_those_made_from_it_at_any_remove(tmp_path: Path) -> None:
    first = _made(tmp_path, 6)
    other = _made(tmp_path, 9)
    second = _made(tmp_path, 7, first)
    third = _made(tmp_path, 8, second)
    assert set(newer_releases(first)) == {second.resolve(), third.resolve()}
    assert set(newer_releases(second)) == {third.resolve()}
    assert newer_releases(third) == newer_releases(other) == {}
