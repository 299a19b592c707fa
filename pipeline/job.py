"""What a run is told, and what it made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from manifests.release import Counts
from pipeline import storage
from pipeline.config import Config
from pipeline.runner import Runner
from pipeline.stage import Done, Span, Work
from pipeline.step import run_step


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a run is told.

    Attributes:
        inputs: files, folders, globs or patterns of Beam file systems.
        labelled: the labelled set.
        output: the folder of stages and releases.
        target: frames to choose.
        config: the resolved config.
        runner: where tasks run.
        seed: of every random choice.
        teacher: a teacher's checkpoint; None: one is trained on the labelled set.
        attributes: a table of attributes per source, or None.
        gold: human masks that train the students and never the teacher, or None.
        audits: folders of human masks of frames of this pool, which calibrate the judge.
        max_bad: largest share of the sources that may be broken.
    """

    inputs: tuple[str, ...]
    labelled: Path
    output: str
    target: int
    config: Config = field(default_factory=Config)
    runner: Runner = field(default_factory=Runner)
    seed: int = 0
    teacher: Path | None = None
    attributes: str | None = None
    gold: Path | None = None
    audits: tuple[Path, ...] = ()
    max_bad: float = 0.05

    @property
    def stages(self) -> str:
        """The folder of all stages."""
        return storage.join(self.output, "stages")

    def stage(self, work: Work, spans: Sequence[tuple[Span, ...]], *inputs: Done) -> Done:
        """Runs a Beam stage, or what is left of it."""
        return self.runner.run(self.stages, work, spans, [done.digest for done in inputs])

    def step(
        self,
        name: str,
        config: Any,
        inputs: Sequence[Done | str],
        libraries: Sequence[str],
        make: Callable[[Path], Sequence[str]],
    ) -> Done:
        """Runs a driver step unless it is done; inputs are finished stages or digests."""
        digests = [done if isinstance(done, str) else done.digest for done in inputs]
        return run_step(self.stages, name, STEP_VERSIONS.get(name, 1), config, digests, libraries, make)

    def say(self, stage: str, text: str) -> None:
        """Shows a line of progress."""
        self.runner.console.print(f"{stage:>8}  {text}", highlight=False, markup=False)

    def reporter(self, stage: str) -> Callable[[str], None]:
        """A function that shows lines of progress of one stage."""
        return lambda text: self.say(stage, text)


STEP_VERSIONS: dict[str, int] = {
    "audit": 2,
    "chosen": 2,
    "cluster": 3,
    "dedupe": 3,
    "gold": 2,
    "placed": 3,
    "plan": 3,
    "verdict": 3,
}
"""Code versions of driver steps whose results have changed since version 1; a changed step gets a new folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a run made.

    Attributes:
        release: the folder of the release.
        verified: whether every byte of it was read again; a release on an object store is not.
        fingerprint: of the release.
        counts: what became of every item read.
        verdicts: samples per verdict.
        sources: sources that the chosen frames come from.
        seconds: of this call (a resumed run only counts what was left).
        calibrated: how the judge knows how probable an error is, in words.
        gates: clusters whose gate is closed, and clusters that were judged.
        judge_page: the judge's report.
    """

    release: str
    verified: bool
    fingerprint: str
    counts: Counts
    verdicts: Mapping[str, int]
    sources: int
    seconds: float
    calibrated: str
    gates: tuple[int, int]
    judge_page: str
