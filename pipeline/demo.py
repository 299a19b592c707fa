"""``curate demo``: the main job on a drawn world, so that the first command needs no data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pipeline.config import Config
from pipeline.driver import curate
from pipeline.errors import InputError
from pipeline.job import Job, Result
from pipeline.runner import Runner
from pipeline.world import draw_world
from teachers.train import TeachConfig

VIDEOS, IMAGES, LABELLED = 36, 60, 400


def demo_config() -> Config:
    """The default config with trainings cut to the size of the drawn pictures."""
    config = Config()
    return replace(
        config,
        driver=replace(config.driver, threads=1),  # faster than two on maps this small
        teach=replace(TeachConfig.quick(), steps=1050),
        judge=replace(config.judge, student=replace(config.judge.student, steps=140)),
        cluster=replace(config.cluster, fit=replace(config.cluster.fit, steps=120)),
    )


def run(output: Path, target: int, seed: int, runner: Runner, config: Config | None = None) -> Result:
    """Draws the world below ``output/world`` and runs the main job on it.

    Raises:
        CurateError: see the main job.
    """
    try:
        world = draw_world(output / "world", seed=seed, videos=VIDEOS, images=IMAGES, labelled=LABELLED)
    except (ValueError, OSError) as error:
        raise InputError(f"the demo's world: {error}") from error
    runner.console.print(
        f"   world  {VIDEOS} videos and {IMAGES} images in {world.folder}", highlight=False, markup=False
    )
    job = Job(
        inputs=(str(world.folder / "unlabelled"),),
        labelled=world.folder / "labelled",
        output=str(output),
        target=target,
        config=config or demo_config(),
        runner=runner,
        seed=seed,
        attributes=str(world.folder / "attributes.csv"),
    )
    return curate(job)
