"""A small drawn world and trainings of a few steps, so that the real main job ends in seconds."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.world import draw_world

CONFIG = """
[cluster.fit]
steps = 6
batch = 16

[teach]
steps = 12
validate_every = 6
batch = 4
points = 128
warm_up = 2

[teach.model]
depth = 18
stem_out = 8
res2_out = 8
norm = "BN"
fpn_out = 16
sem_convs_dim = 32
point_fc_dim = 16
subdivision_num_points = 256
min_size_test = 96
max_size_test = 192

[teach.augment]
crop = 96
short_side = 96

[judge]
folds = 2

[judge.student]
steps = 12
batch = 8
side = 64
save_seconds = 0.0

[label]
rows = 8
student_side = 128
"""
TARGET = 24


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drawn world of 6 videos, 14 images and 20 labelled frames."""
    return draw_world(tmp_path_factory.mktemp("world") / "w", seed=3, videos=6, images=14, labelled=20).folder


@pytest.fixture(scope="session")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config whose trainings take a few steps."""
    path = tmp_path_factory.mktemp("config") / "curate.toml"
    path.write_text(CONFIG)
    return path


def arguments(world: Path, config: Path, output: Path, *more: str) -> list[str]:
    """The command line of the main job on a drawn world."""
    flags = ["--input", str(world / "unlabelled"), "--labelled", str(world / "labelled"), "--output", str(output)]
    flags += ["--attributes", str(world / "attributes.csv"), "--config", str(config), "--target-size", str(TARGET)]
    return [*flags, *more]


def contents(output: Path) -> dict[str, bytes]:
    """Every file of the only release below an output folder."""
    (release,) = (output / "releases").iterdir()
    return {p.relative_to(release).as_posix(): p.read_bytes() for p in sorted(release.rglob("*")) if p.is_file()}
