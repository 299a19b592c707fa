"""A release under review: one that is only looked at, and copies that may be changed."""

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from manifests.release import RELEASE_FILE, fingerprint
from review.server import running
from tests.review import releases
from tests.review.asked import SAMPLES
from tests.review.client import Client


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with a release and its successor; not to be changed."""
    root = tmp_path_factory.mktemp("api") / "root of it all"
    first = releases.write(root, SAMPLES)
    digest = fingerprint((first / RELEASE_FILE).read_bytes())
    inverted = dataclasses.replace(SAMPLES[0], mask=~SAMPLES[0].mask)
    changed = [inverted, *SAMPLES[1:-1]]
    releases.write(root, changed, parents=(digest,))
    return first


@pytest.fixture(scope="module")
def looking(written: Path) -> Iterator[Client]:
    """A client that changes nothing."""
    with running(written, read_only=True) as url:
        yield Client.of(url, "Ada")


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    """A copy that may be changed, without the successor."""
    copy = tmp_path / "root" / "releases" / written.name
    shutil.copytree(written, copy)
    return copy


@pytest.fixture
def url(folder: Path) -> Iterator[str]:
    with running(folder) as address:
        yield address


@pytest.fixture
def ada(url: str) -> Client:
    return Client.of(url, "Ada")


@pytest.fixture
def bob(url: str) -> Client:
    return Client.of(url, "Bób ☺")
