"""What every test shares: hypothesis profiles and the place of the shared folder."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from benchmarks.shared import SHARED

settings.register_profile("dev", deadline=None)
settings.register_profile(
    "ci", deadline=None, derandomize=True, max_examples=60, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("ci" if os.environ.get("CI") else "dev")


def _shared(part: str) -> Path:
    folder = SHARED / part
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent (set CURATE_SHARED)")
    return folder


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real images, clips and bad files; the test skips where it is absent."""
    return _shared("data")


@pytest.fixture(scope="session")
def goldens() -> Path:
    """The folder of reference inputs and outputs; the test skips where it is absent."""
    return _shared("goldens")
