"""Laws of the runner: the same bytes whatever the workers, only what is missing is run, an error is one line."""

import io
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pyarrow as pa
import pytest
from rich.console import Console

from pipeline.errors import InputError, StageError
from pipeline.runner import Runner, last_line, quiet_beam, unknown_beam_flags
from pipeline.stage import Done, Output, Span, Task, not_identity

SPANS = [(Span(uri="memory", start=10 * i, stop=10 * i + 10),) for i in range(5)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Squares:
    """Squares of the numbers of a span; writes down which tasks it does, and fails at those it is told to."""

    name: ClassVar[str] = "squares"
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = ("pyarrow",)

    log: str = not_identity()
    fail: tuple[int, ...] = not_identity(default=())
    opens: bool = not_identity(default=True)

    def open(self) -> Callable[[Task], Output]:
        if not self.opens:
            raise InputError("the weights have changed; run again")
        return self.run

    def run(self, task: Task) -> Output:
        with (Path(self.log) / f"{task.index}-{time.monotonic_ns()}").open("wb"):
            pass
        if task.index in self.fail:
            raise InputError(f"task {task.index} is odd [1];\nrepair it")
        numbers = pa.array(range(task.spans[0].start, task.spans[0].stop or 0), pa.int64())
        return Output(table=pa.table({"square": [n * n for n in numbers.to_pylist()]}), counts={"read": len(numbers)})


class Place:
    """A folder for stages and one for what was done there."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "stages"
        self.log = folder / "log"
        self.log.mkdir(parents=True)
        self.shown = io.StringIO()

    def run(
        self,
        *flags: str,
        name: str = "direct",
        workers: int = 1,
        fail: tuple[int, ...] = (),
        opens: bool = True,
        spans: Sequence[tuple[Span, ...]] = SPANS,
    ) -> Done:
        runner = Runner(name=name, workers=workers, flags=flags, console=Console(file=self.shown, width=200))
        return runner.run(str(self.root), Squares(log=str(self.log), fail=fail, opens=opens), spans, ["input"])

    def done_tasks(self) -> list[int]:
        indices = sorted(int(path.name.split("-")[0]) for path in self.log.iterdir())
        for path in self.log.iterdir():
            path.unlink()
        return indices

    def content(self) -> dict[str, bytes]:
        paths = (path for path in self.root.rglob("*") if path.is_file() and path.parent.name != "_commits")
        return {str(path.relative_to(self.root)): path.read_bytes() for path in paths}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_one_and_two_workers_and_replayed_bundles_give_the_same_bytes(tmp_path: Path) -> None:
    one, two, replayed = (Place(tmp_path / name) for name in ("one", "two", "replayed"))
    done = one.run()
    two.run(workers=2)
    replayed.run("--direct_runner_bundle_repeat=2")
    assert one.done_tasks() == two.done_tasks() == [0, 1, 2, 3, 4]
    assert set(replayed.done_tasks()) == {0, 1, 2, 3, 4}
    assert one.content() == two.content() == replayed.content()
    assert len(one.content()) == 6
    assert (done.rows, done.counts) == (50, {"read": 50})


def test_the_portable_runner_gives_the_same_bytes(tmp_path: Path) -> None:
    direct, portable = Place(tmp_path / "direct"), Place(tmp_path / "portable")
    direct.run()
    portable.run(name="portable", workers=2)
    assert portable.content() == direct.content()


def test_a_finished_stage_is_not_run_again(place: Place) -> None:
    done = place.run()
    place.done_tasks()
    started = time.monotonic()
    assert place.run(fail=(0, 1, 2, 3, 4)) == done
    assert time.monotonic() - started < 0.5
    assert place.done_tasks() == []
    assert "5 parts, done before" in place.shown.getvalue()


@pytest.mark.parametrize("workers", [1, 2])
def test_only_what_is_missing_is_run(place: Place, workers: int, tmp_path: Path) -> None:
    with pytest.raises(StageError):
        place.run(fail=(3,), workers=workers)
    finished = {path.stem for path in place.root.rglob("_commits/*.json")}
    place.done_tasks()
    place.run(workers=workers)
    assert place.done_tasks() == sorted({0, 1, 2, 3, 4} - {int(stem) for stem in finished})
    whole = Place(tmp_path / "whole")
    whole.run()
    resumed = {name: data for name, data in place.content().items() if "_failed" not in name}
    assert resumed == whole.content()
    if finished:
        assert f"{len(finished)} of 5 shards were done before" in place.shown.getvalue()


def test_tasks_cut_otherwise_are_not_mixed_with_those_done_before(place: Place) -> None:
    with pytest.raises(StageError):
        place.run(fail=(3,))
    assert any(place.root.rglob("_commits/*.json"))
    done = place.run(spans=[(Span(uri="memory", start=25 * i, stop=25 * i + 25),) for i in range(2)])
    assert (done.rows, done.counts) == (50, {"read": 50})


def test_the_folder_of_the_input_does_not_name_the_stage(place: Place) -> None:
    done = place.run()
    moved = [(Span(uri="elsewhere", start=s.start, stop=s.stop),) for (s,) in SPANS]
    assert place.run(spans=moved).folder == done.folder


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_inside_a_task_is_one_stage_error(place: Place, workers: int) -> None:
    with pytest.raises(StageError, match=r"^stage squares: task 2 is odd \[1\];\nrepair it$"):
        place.run(fail=(2,), workers=workers)


def test_nothing_of_beam_reaches_the_terminal(place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    with quiet_beam():
        with pytest.raises(StageError):
            place.run(fail=(2,), workers=2)
        time.sleep(0.5)  # workers that are told of the end print late
    shown = capfd.readouterr()
    assert (shown.out, shown.err) == ("", "")


def test_an_error_of_an_earlier_attempt_is_not_told_again(place: Place) -> None:
    with pytest.raises(StageError, match="task 1 is odd"):
        place.run(fail=(1,))
    with pytest.raises(StageError, match=r"^stage squares: task 4 is odd") as caught:
        place.run(fail=(4,))
    assert "more)" not in str(caught.value)


def test_an_error_while_opening_keeps_its_message(place: Place) -> None:
    with pytest.raises(StageError, match=r"^stage squares: the weights have changed; run again$"):
        place.run(opens=False)


def test_no_tasks_make_an_empty_stage(place: Place) -> None:
    done = place.run(spans=[])
    assert (done.parts, done.rows, done.counts) == ((), 0, {})


def test_progress_is_shown_once_where_there_is_no_terminal(place: Place) -> None:
    place.run()
    lines = place.shown.getvalue().splitlines()
    assert len(lines) == 1
    assert "squares  5 of 5 shards, 50 rows in" in lines[0]


# Words ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "unknown"),
    [
        ([], []),
        (["--project=p", "--region", "r", "--experiments=a", "--experiments=b"], []),
        (["--direct_runner_bundle_repeat=2", "--no_use_public_ips"], []),
        (["--projct=p"], ["projct"]),
        (["--project=p", "--temp_locatoin", "gs://b"], ["temp_locatoin"]),
        (["--zz", "--aa=1"], ["aa", "zz"]),
    ],
)
def test_a_flag_that_beam_would_ignore_is_found(flags: list[str], unknown: list[str]) -> None:
    assert unknown_beam_flags(flags) == unknown


TRACEBACK = """Traceback (most recent call last):
  File "x.py", line 3, in process
    raise StageError("disk is full")
{last}

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "y.py", line 4, in run
{then}
"""


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("pipeline.errors.InputError: the labels are odd", "the labels are odd"),
        ("ValueError: odd", "ValueError: odd"),
        (
            TRACEBACK.format(
                last="ValueError: first", then="pipeline.errors.StageError: second [while running 'Run x']"
            ),
            "second",
        ),
        ("  pyarrow.lib.ArrowInvalid: bad magic [while running 'Run x']\n", "pyarrow.lib.ArrowInvalid: bad magic"),
        ("KeyboardInterrupt", "KeyboardInterrupt"),
        ("only words", "only words"),
        ("", "no reason given"),
        (" \n ", "no reason given"),
    ],
)
def test_the_last_line_of_a_traceback_is_the_message(text: str, line: str) -> None:
    assert last_line(text) == line
