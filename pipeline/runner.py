"""Runs the tasks of a stage through Beam, whichever the runner, and shows how far they are.

An element of the pipeline is a task; progress is read from the commit records, since Beam's own counters are wrong
after retries and are not there at all on some runners.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from rich.console import Console

from pipeline import storage
from pipeline.errors import StageError, UsageError
from pipeline.stage import (
    Done,
    RunTask,
    Span,
    Task,
    Work,
    collect,
    commit_name,
    committed,
    failures,
    read_manifest,
    stage_folder,
)
from pipeline.step import digest_of

RUNNERS = {
    "direct": "FnApiRunner",  # by name: "DirectRunner" would first try to fetch a runner written in Go
    "portable": "PortableRunner",
    "dataflow": "DataflowRunner",
    "flink": "FlinkRunner",
    "spark": "SparkRunner",
}


REMOTE = ("dataflow", "flink", "spark")
"""Runners whose workers do not see this machine's disk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Runner:
    """Where tasks run.

    Attributes:
        name: a key of ``RUNNERS``.
        workers: threads of the direct and the local portable runner.
        flags: Beam's own flags (what followed ``--``).
        console: where progress is shown.
    """

    name: str = "direct"
    workers: int = 1
    flags: tuple[str, ...] = ()
    console: Console = field(default_factory=lambda: Console(file=sys.stderr))

    def run(self, root: str, work: Work, spans: Sequence[tuple[Span, ...]], inputs: Sequence[str]) -> Done:
        """Runs a stage, or what is left of it, or nothing if it is done.

        Args:
            root: folder of all stages.
            work: what each task does.
            spans: what each task reads; one task per element.
            inputs: digests of what the stage reads.

        Raises:
            StageError: a task failed; the message is that of the first failure. Committed tasks stay.
        """
        cut = digest_of([[[span.start, span.stop] for span in task] for task in spans])
        folder = stage_folder(root, work, [*inputs, cut])  # commits of another cut into tasks must not be mixed in
        done = read_manifest(folder)
        if done is not None:
            self.console.print(f"[dim]{work.name:>8}  {len(done.parts)} parts, done before[/dim]", highlight=False)
            return done
        finished = committed(folder)
        tasks = [
            Task(index=i, count=len(spans), folder=folder, spans=s) for i, s in enumerate(spans) if i not in finished
        ]
        storage.make_folder(folder)
        with Progress(self.console, work.name, folder, len(spans)):
            if tasks:
                self._run_beam(work, tasks)
        return collect(work.name, folder, len(spans))

    def _run_beam(self, work: Work, tasks: Sequence[Task]) -> None:
        try:
            pipeline = beam.Pipeline(runner=RUNNERS[self.name], options=self.options())
            _ = (
                pipeline
                | f"Tasks of {work.name}" >> beam.Create(tasks)
                | f"Run {work.name}" >> beam.ParDo(RunTask(work))
            )
            pipeline.run().wait_until_finish()
        except Exception as error:
            told = failures(tasks[0].folder)
            reason = told[0] if told else last_line(str(error))
            more = f" (and {len(told) - 1} more)" if len(told) > 1 else ""
            raise StageError(f"stage {work.name}: {reason}{more}") from error

    def options(self) -> PipelineOptions:
        """Beam's options for this runner."""
        flags = list(self.flags)
        if self.name == "direct":
            mode = "multi_threading" if self.workers > 1 else "in_memory"
            flags += [f"--direct_num_workers={self.workers}", f"--direct_running_mode={mode}"]
        if self.name == "portable" and not any(flag.startswith("--job_endpoint") for flag in flags):
            flags += ["--job_endpoint=embed", "--environment_type=LOOPBACK", f"--sdk_worker_parallelism={self.workers}"]
        return PipelineOptions(flags)


class Progress:
    """Shows shards done, rows per second and the time left: live on a terminal, one line at the end elsewhere."""

    def __init__(self, console: Console, stage: str, folder: str, shards: int) -> None:
        self._console = console
        self._stage = stage
        self._folder = folder
        self._shards = shards
        self._rows: dict[int, int] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Progress:
        """Starts to watch."""
        self._started = time.monotonic()
        self._before = committed(self._folder)
        if self._before:
            self._say(f"{len(self._before)} of {self._shards} shards were done before")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stops to watch and says how it went."""
        self._stop.set()
        self._thread.join()
        self._look()
        seconds = max(time.monotonic() - self._started, 1e-3)
        rows = sum(self._rows.values())
        done = len(self._rows) + len(self._before)
        self._say(f"{done} of {self._shards} shards, {rows} rows in {seconds:.1f} s ({rows / seconds:.1f} rows/s)")

    def _say(self, text: str) -> None:
        self._console.print(f"{self._stage:>8}  {text}", highlight=False)

    def _watch(self) -> None:
        if not self._console.is_terminal:
            self._stop.wait()
            return
        with self._console.status(f"{self._stage:>8}  starting") as status:
            while not self._stop.wait(1.0):
                self._look()
                status.update(self._line())

    def _look(self) -> None:
        for index in committed(self._folder) - self._before - self._rows.keys():
            record = storage.read_bytes(storage.join(self._folder, "_commits", commit_name(index)))
            self._rows[index] = json.loads(record)["parts"][0]["rows"]

    def _line(self) -> str:
        seconds = time.monotonic() - self._started
        done = len(self._rows) + len(self._before)
        pace = len(self._rows) / seconds
        left = f"{(self._shards - done) / pace:.0f} s left" if pace > 0 else "measuring"
        rows = sum(self._rows.values()) / seconds
        return f"{self._stage:>8}  {done} of {self._shards} shards, {rows:.1f} rows/s, {left}"


def unknown_beam_flags(flags: Sequence[str]) -> list[str]:
    """Flags that Beam would only warn about and ignore.

    Raises:
        UsageError: Beam refuses a value, or a word is neither a flag nor the value of one.
    """
    for before, word in zip(("", *flags), flags, strict=False):
        if not word.startswith("-") and (not before.startswith("--") or "=" in before):
            raise UsageError(f"what follows -- goes to Beam and must be flags; got '{word}', did you mean '--{word}'?")
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            options = PipelineOptions(list(flags))
            known = options.get_all_options()
            kept = options.get_all_options(retain_unknown_options=True)
    except SystemExit as error:
        raise UsageError(f"Beam refuses its flags: {said.getvalue().strip().splitlines()[-1]}") from error
    return sorted(set(kept) - set(known))


def beam_flags() -> list[str]:
    """The flags that Beam and its runners know."""
    return sorted(PipelineOptions().get_all_options())


def last_line(text: str) -> str:
    """The message of a traceback: its last line that names an error, without the module."""
    lines = [line.strip() for line in text.splitlines() if re.match(r"^\s*[\w.]*(Error|Exception|Interrupt)\b", line)]
    line = lines[-1] if lines else text.strip().splitlines()[-1] if text.strip() else "no reason given"
    return re.sub(r"^[\w.]*\.(\w+(?:Error|Exception)): ", r"", line).split(" [while running")[0]


@contextlib.contextmanager
def quiet_beam() -> Iterator[None]:
    """Keeps Beam's log, and the tracebacks its workers print, off the terminal unless CURATE_DEBUG is set.

    A console that shows progress must hold the stream itself, since the name ``sys.stderr`` points elsewhere meanwhile.
    """
    if os.environ.get("CURATE_DEBUG"):
        yield
        return
    logging.getLogger("apache_beam").setLevel(logging.CRITICAL)
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.CRITICAL)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        root.setLevel(before)
