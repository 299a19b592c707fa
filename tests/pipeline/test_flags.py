"""Laws of the command line: sizes are exact, a mistyped word is met with the nearest one, exit codes are kept."""

import argparse
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import cli, desk_flags
from pipeline.errors import UsageError
from pipeline.flags import COMMANDS, TEACHER_COMMANDS, parse, size

RUN = ["run", "--input", "in", "--labelled", "lab", "--target-size", "50k", "--output", "out"]


# Sizes ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("200", 200),
        ("50k", 50_000),
        ("50K", 50_000),
        ("1M", 1_000_000),
        ("1.5M", 1_500_000),
        ("0.001k", 1),
        ("16.1k", 16_100),
        ("1.001k", 1001),
        (" 7 ", 7),
        ("12.0", 12),
        ("9" * 400, int("9" * 400)),
    ],
)
def test_a_size_is_a_number_of_frames(text: str, value: int) -> None:
    assert size(text) == value


@given(st.integers(1, 10**12))
def test_every_whole_number_can_be_written_in_every_unit(frames: int) -> None:
    assert size(str(frames)) == frames
    assert size(f"{frames // 1000}.{frames % 1000:03d}k") == frames
    assert size(f"{frames // 10**6}.{frames % 10**6:06d}M") == frames


@pytest.mark.parametrize(
    "text", ["", "k", "-1", "+1", "1e6", "1kk", "1 k", "1G", "0x10", "1,000", "nan", "inf", ".5M", "1.k"]
)
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is no size; write 200, 50k or 1M"):
        size(text)


@pytest.mark.parametrize("text", ["0", "0k", "0.5", "1.5", "1.0005k", "0.0000001M"])
def test_a_size_is_whole_and_at_least_one(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="must be a whole number of frames, at least 1"):
        size(text)


# Commands and flags ---------------------------------------------------------------------------------------------------


def test_a_run_is_told_all_it_needs() -> None:
    values = parse([*RUN, "--input", "more", "again", "--seed", "7", "--workers", "3", "--", "--project=p", "--", "x"])
    assert (values.command, values.input, values.labelled) == ("run", ["in", "more", "again"], Path("lab"))
    assert (values.target_size, values.output, values.seed, values.workers) == (50_000, "out", 7, 3)
    assert (values.runner, values.max_bad_fraction, values.plan) == ("direct", 0.05, False)
    assert (values.teacher, values.attributes, values.config) == (None, None, None)
    assert (values.gold, values.audit) == (None, [])
    people = parse([*RUN, "--gold", "g", "--audit", "a", "--audit", "b"])
    assert (people.gold, people.audit) == (Path("g"), [Path("a"), Path("b")])
    assert values.beam == ("--project=p", "--", "x")


def test_run_is_the_default_command() -> None:
    assert vars(parse(RUN[1:])) == vars(parse(RUN))


def test_every_command_can_be_given() -> None:
    given_commands = [RUN, ["demo", "--output", "o"], ["audit", "p"], ["evaluate", "--output", "o"]]
    given_commands += [["export", "m", "--output", "o"], ["next-round", "r", "--output", "o"]]
    given_commands += [["preview", "v", "--model", "m", "--output", "o.mp4"]]
    given_commands += [["search", "--latency-ms", "5", "--output", "o"], ["teach", "--labelled", "l", "--output", "o"]]
    given_commands += [["train", "r", "--output", "o"]]
    made = [name for name in COMMANDS if name not in ("teacher", *desk_flags.COMMANDS)]
    assert [parse(argv).command for argv in given_commands] == made
    desk = [["apply-reviews", "r"], ["croissant", "r"], ["datacard", "r"], ["diff", "a", "b"]]
    desk += [["export-labels", "r", "--output", "o", "--redraw"], ["forget", "o", "--subject", "s"]]
    desk += [["import-labels", "r", "s"], ["report", "r"], ["review", "r"], ["verify", "r"]]
    assert [desk_flags.parse(argv).command for argv in desk] == list(desk_flags.COMMANDS)
    assert set(desk_flags.COMMANDS) < set(COMMANDS)
    further = [["sign", "r", "--key", "k"], ["verify", "r"]]
    assert [desk_flags.parse(["review", *argv]).command for argv in further] == ["review sign", "review verify"]
    below = [["evaluate", "--teacher", "t", "--labelled", "l", "--output", "o"], ["fetch", "n"], ["convert", "a", "b"]]
    found = {parse(["teacher", *argv]).command for argv in below}
    assert found == {f"teacher {name}" for name in TEACHER_COMMANDS}


@pytest.mark.parametrize(("text", "value"), [("16:9", 16 / 9), ("1:1", 1.0), ("9:16", 9 / 16)])
def test_an_aspect_is_width_to_height(text: str, value: float) -> None:
    assert parse(["search", "--latency-ms", "5", "--output", "o", "--aspect", text]).aspect == value


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["search", "--output", "o", "--latency-ms", "0"], "must be a number of milliseconds > 0, got '0'"),
        (["search", "--output", "o", "--latency-ms", "5", "--aspect", "16/9"], "must be width:height as 16:9"),
        (["preview", "v", "--model", "m", "--output", "o", "--start", "nan"], "must be a number of seconds >= 0"),
        (["export", "m", "--output", "o", "--format", "onxn"], "invalid choice: 'onxn'; did you mean 'onnx'?"),
        (["train", "--preset", "tiny"], "invalid choice: 'tiny'; known are base, large, nano, small"),
        ([], "nothing to do; try 'curate demo --output demo'"),
        (["--", "--project=p"], "nothing to do"),
        (["rnu"], "unknown command 'rnu'; did you mean 'run'?"),
        (["verfy", "x"], "unknown command 'verfy'; did you mean 'verify'?"),
        (
            ["qqq"],
            f"unknown command 'qqq'; known are {', '.join(sorted(COMMANDS))}",
        ),
        ([*RUN, "--target-sise", "3"], "unknown argument '--target-sise'; did you mean '--target-size'?"),
        (["run", "--target=3"], "unknown argument '--target'; did you mean '--target-size'?"),
        (["--inputs", "x"], "unknown argument '--inputs'; did you mean '--input'?"),
        (["demo", "--output", "o", "--labelled", "x"], "unknown argument '--labelled'; "),
        (["demo", "--out", "o"], "unknown argument '--out'; did you mean '--output'?"),
        (["run", "--input", "x"], "the following arguments are required: --labelled, --target-size, --output"),
        (["demo"], "the following arguments are required: --output"),
        (["verify"], "the following arguments are required: RELEASE"),
        (["verify", "a", "b"], "unrecognized arguments: b"),
        (["demo", "--output", "o", "-q"], "unrecognized arguments: -q"),
        ([*RUN, "--target-size", "many"], "argument --target-size: 'many' is no size"),
        ([*RUN, "--seed", "-1"], "argument --seed: must be a whole number from 0 to 2147483647, got '-1'"),
        ([*RUN, "--seed", "2147483648"], "argument --seed: must be"),
        ([*RUN, "--workers", "0"], "argument --workers: must be a whole number >= 1, got '0'"),
        ([*RUN, "--max-bad-fraction", "5"], "argument --max-bad-fraction: must be a share from 0 to 1, got '5'"),
        ([*RUN, "--max-bad-fraction", "nan"], "must be a share from 0 to 1"),
        ([*RUN, "--runner", "dask"], "argument --runner: invalid choice: 'dask'"),
        (["demo", "--output", "o", "--", "--project=p"], "'curate demo' runs no Beam flags; remove what follows --"),
    ],
)
def test_wrong_usage_is_met_with_what_is_right(argv: list[str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(argv)
    assert message in str(caught.value)


# Exit codes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("argv", [["--version"], ["--help"], ["-h"], *([command, "--help"] for command in COMMANDS)])
def test_asking_is_no_error(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(argv)
    assert caught.value.code == 0
    shown = capsys.readouterr()
    assert "curate" in shown.out
    assert shown.err == ""


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "nothing to do"),
        (["rnu"], "unknown command 'rnu'; did you mean 'run'?"),
        ([*RUN, "--seed", "[red]"], "got '[red]'"),
        ([*RUN, "--", "--projct=p"], "Beam does not know '--projct'"),
        ([*RUN, "--config", "absent.toml"], "--config absent.toml: No such file or directory"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_two(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(argv) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert len(shown.err.splitlines()) == 1
    assert shown.err.startswith("curate: error: ")
    assert message in shown.err


def test_what_cannot_be_done_is_one_line_and_exit_code_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_bytes(b"")
    argv = ["--input", str(tmp_path / "absent"), "--labelled", str(tmp_path / "lab"), "--target-size", "5"]
    assert cli.main([*argv, "--output", str(tmp_path / "file")]) == 1
    assert "file is a file; give a folder" in capsys.readouterr().err
    assert cli.main([*argv, "--output", str(tmp_path / "out")]) == 1
    assert str(tmp_path / "lab") in capsys.readouterr().err
    assert cli.main(["verify", str(tmp_path / "absent")]) == 1
    shown = capsys.readouterr().err
    assert str(tmp_path / "absent") in shown
    assert len(shown.splitlines()) == 1
