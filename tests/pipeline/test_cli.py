"""Laws of the command: one line says what is wrong and what to do, and the exit code tells who is to act."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from PIL import Image

from manifests.release import Counts
from pipeline import commands, demo, storage
from pipeline.cli import main
from pipeline.config import Config
from pipeline.errors import CurateError, InputError, StageError, StorageError, UsageError
from pipeline.job import Job, Result
from pipeline.plan import Line, Plan
from pipeline.release import write
from teachers.backend import load_teacher
from tests.end_to_end.conftest import CONFIG
from tests.pipeline.media import jpeg, texture
from tests.pipeline.test_publish import draw_published
from tests.pipeline.test_release import draw_run

Said = pytest.CaptureFixture[str]
RUN = ["run", "--input", "in", "--labelled", "lab", "--target-size", "5", "--output", "out"]
COUNTS = Counts(read=1000, undecodable=11, duplicate=22, not_sampled=767, dropped=33, held=44, kept=123)


@pytest.fixture(autouse=True)
def _no_debugging(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CURATE_DEBUG", raising=False)


def raising(error: BaseException) -> Callable[..., NoReturn]:
    """A function that only fails."""

    def fail(*_: object, **__: object) -> NoReturn:
        raise error

    return fail


# Wrong usage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["teech"], "unknown command 'teech'; did you mean 'teach'?"),
        ([*RUN, "--sead", "1"], "unknown argument '--sead'; did you mean '--seed'?"),
        (["verify", "x", "--fix"], "unknown argument '--fix'"),
        ([*RUN, "--runner", "flnk"], "argument --runner: invalid choice: 'flnk'; did you mean 'flink'?"),
        ([*RUN, "--runner", "spark!"], "argument --runner: invalid choice: 'spark!'"),
        ([*RUN, "--target-size", "0"], "argument --target-size: '0' must be a whole number of frames, at least 1"),
        ([*RUN, "--config", "{tmp}/absent.toml"], "--config {tmp}/absent.toml: No such file or directory"),
        ([*RUN, "--config", "{tmp}/key.toml"], "key.toml [label]: unknown key 'row'; did you mean 'rows'?"),
        ([*RUN, "--config", "{tmp}/value.toml"], "value.toml [judge]: judge needs folds >= 2"),
        ([*RUN, "--config", "{tmp}/toml.toml"], "toml.toml is not valid TOML"),
        ([*RUN, "--", "--runner_typo=1"], "Beam does not know '--runner_typo'"),
        (["teach", "--labelled", "l", "--output", "o", "--workers", "2"], "unknown argument '--workers'"),
        (["verify", "x", "--", "--project=p"], "'curate verify' runs no Beam flags; remove what follows --"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_two(tmp_path: Path, argv: list[str], message: str, capsys: Said) -> None:
    (tmp_path / "key.toml").write_text("[label]\nrow = 3\n")
    (tmp_path / "value.toml").write_text("[judge]\nfolds = 1\n")
    (tmp_path / "toml.toml").write_text("[label\n")
    assert main([word.format(tmp=tmp_path) for word in argv]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("curate: error: ")
    assert message.format(tmp=tmp_path) in shown.err
    assert len(shown.err.splitlines()) == 1
    assert not Path("out").exists()


# What cannot be done --------------------------------------------------------------------------------------------------


def draw_labelled(folder: Path, count: int = 4) -> None:
    """Pictures of 72 x 64 pixels and masks."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for number in range(count):
        pixels = texture(number, 64, 72)
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
        Image.fromarray((pixels[:, :, 0] > 128).astype(np.uint8) * 255).save(folder / "masks" / f"{number}.png")


def draw_inputs(folder: Path) -> dict[str, str]:
    """What a run needs, in files; not much of it."""
    draw_labelled(folder / "lab")
    (folder / "in").mkdir()
    for number in range(3):
        (folder / "in" / f"{number}.jpg").write_bytes(jpeg(number))
    return {"--input": str(folder / "in"), "--labelled": str(folder / "lab"), "--output": str(folder / "out")}


@pytest.mark.parametrize(
    ("flag", "name", "message"),
    [
        ("--input", "absent", "absent does not exist"),
        ("--input", "lab/masks/*.mp4", "lab/masks/*.mp4"),
        ("--labelled", "absent", "--labelled: '{tmp}/absent/images' must be a folder"),
        ("--teacher", "absent.pth", "absent.pth is no file; give a checkpoint, or leave it out to train one"),
        ("--teacher", "in/0.jpg", "in/0.jpg: weights must end in"),
        ("--attributes", "absent.csv", "cannot read {tmp}/absent.csv: No such file or directory"),
        ("--attributes", "in/0.jpg", "in/0.jpg is neither CSV (UTF-8) nor Parquet"),
        ("--output", "in/0.jpg", "--output {tmp}/in/0.jpg is a file; give a folder"),
        ("--output", "in/0.jpg/deeper", "in/0.jpg/deeper"),
    ],
)
def test_a_file_that_is_missing_or_no_good_is_named_in_one_line(
    tmp_path: Path, flag: str, name: str, message: str, capsys: Said
) -> None:
    flags = draw_inputs(tmp_path) | {flag: str(tmp_path / name)}
    argv = [word for pair in flags.items() for word in pair]
    assert main([*argv, "--target-size", "3", "--workers", "1"]) == 1
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("curate:")]
    assert len(told) == 1
    assert told[0].startswith("curate: error: ")
    assert message.format(tmp=tmp_path) in told[0]


@pytest.mark.parametrize("error", [CurateError, InputError, StageError, StorageError, UsageError])
@pytest.mark.parametrize(
    "text", ["a[b]c", "[/b]", "\\[/b] \\", "[red]x[/red]", "50 % of [0, 1]", ":boom: {x}", "ä — “ß”", "x" * 300]
)
def test_a_message_is_told_as_it_is(
    error: type[CurateError], text: str, monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    monkeypatch.setattr(commands, "curate", raising(error(text)))
    assert main(RUN) == error.exit_code
    assert capsys.readouterr().err == f"curate: error: {text}\n"


def test_an_error_of_the_operating_system_names_the_path(monkeypatch: pytest.MonkeyPatch, capsys: Said) -> None:
    monkeypatch.setattr(commands, "curate", raising(PermissionError(13, "Permission denied", "/some/[/file]")))
    assert main(RUN) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert first == "curate: error: [Errno 13] Permission denied: '/some/[/file]'; check the path and the disk"
    assert second == "what was committed is kept, the same command goes on from there"


def test_a_stopped_run_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, capsys: Said) -> None:
    monkeypatch.setattr(commands, "curate", raising(KeyboardInterrupt()))
    assert main(RUN) == 1
    shown = capsys.readouterr()
    assert shown.err == "curate: stopped; what was committed is kept, the same command goes on from there\n"
    assert shown.out == ""


@pytest.mark.parametrize("error", [KeyError("lost"), ValueError("[/odd] text"), RuntimeError(), MemoryError("no more")])
def test_a_defect_of_ours_is_told_without_a_traceback(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    monkeypatch.setattr(commands, "curate", raising(error))
    assert main(RUN) == 1
    shown = capsys.readouterr()
    first, second = shown.err.splitlines()
    assert first == f"curate: this is a defect: {type(error).__name__}: {error}"
    assert second.endswith("set CURATE_DEBUG=1 for the traceback and report it, please")
    assert "Traceback" not in shown.err + shown.out


def test_a_defect_is_raised_where_its_traceback_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CURATE_DEBUG", "1")
    monkeypatch.setattr(commands, "curate", raising(KeyError("lost")))
    with pytest.raises(KeyError, match="lost"):
        main(RUN)


def test_what_the_user_can_mend_is_no_traceback_even_then(monkeypatch: pytest.MonkeyPatch, capsys: Said) -> None:
    monkeypatch.setenv("CURATE_DEBUG", "1")
    monkeypatch.setattr(commands, "curate", raising(InputError("no frames")))
    assert main(RUN) == 1
    assert capsys.readouterr().err == "curate: error: no frames\n"


# run and demo ---------------------------------------------------------------------------------------------------------


def result(**values: Any) -> Result:
    facts: dict[str, Any] = {
        "release": "out/[r-1]",
        "verified": True,
        "fingerprint": "f" * 64,
        "counts": COUNTS,
        "verdicts": {"keep": 101, "weight": 12, "correct": 10, "hold": 44, "drop": 33},
        "sources": 17,
        "seconds": 61.6,
        "calibrated": "not calibrated (no audit was given)",
        "gates": (2, 9),
        "judge_page": "out/judge.html",
    }
    return Result(**(facts | values))


def test_a_run_is_given_every_flag_and_tells_every_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    jobs: list[Job] = []

    def curate(job: Job) -> Result:
        jobs.append(job)
        return result()

    monkeypatch.setattr(commands, "curate", curate)
    (tmp_path / "c.toml").write_text("[label]\nrows = 7\n")
    more = ["--seed", "9", "--workers", "3", "--teacher", "t.pth", "--attributes", "a.csv", "--max-bad-fraction", "0.5"]
    more += ["--gold", "g", "--audit", "a", "--audit", "b"]
    argv = [*RUN, *more, "--config", str(tmp_path / "c.toml"), "--", "--direct_runner_bundle_repeat=2"]
    assert main(argv) == 0
    (job,) = jobs
    assert (job.inputs, job.labelled, job.output, job.target) == (("in",), Path("lab"), "out", 5)
    assert (job.seed, job.teacher, job.attributes, job.max_bad) == (9, Path("t.pth"), "a.csv", 0.5)
    assert (job.gold, job.audits) == (Path("g"), (Path("a"), Path("b")))
    assert (job.runner.name, job.runner.workers) == ("direct", 3)
    assert job.runner.flags == ("--direct_runner_bundle_repeat=2",)
    assert job.config.label.rows == 7
    shown = capsys.readouterr()
    assert shown.err == ""
    lines = [line.split("│")[1:3] for line in shown.out.splitlines() if line.startswith("│")]
    assert {name.strip(): int(n) for name, n in lines} == {
        "read": 1000,
        "undecodable": 11,
        "duplicate": 22,
        "not sampled": 767,
        "dropped": 33,
        "held": 44,
        "kept": 123,
    }
    assert "200 chosen from 17 sources; verdicts: keep 101, weight 12, correct 10, hold 44, drop 33" in shown.out
    assert "judge: not calibrated (no audit was given); 2 of 9 gates closed; see out/judge.html" in shown.out
    assert "release out/[r-1] (verified; 62 s)" in shown.out


def test_a_release_that_was_not_read_again_says_so(monkeypatch: pytest.MonkeyPatch, capsys: Said) -> None:
    monkeypatch.setattr(commands, "curate", lambda _: result(verified=False))
    assert main(RUN) == 0
    assert "copy it here and run 'curate verify' on it" in capsys.readouterr().out


def test_a_plan_that_the_disk_cannot_hold_fails(monkeypatch: pytest.MonkeyPatch, capsys: Said) -> None:
    line = Line(stage="publish", tasks=3, items=1234, cpu_hours=0.5, gpu_hours=0.0, bytes=2_000_000)
    plan = Plan(lines=(line,), memory_bytes=5_000, sampled=2, sources=9)
    monkeypatch.setattr(commands, "estimate", lambda _: plan)
    monkeypatch.setattr(commands, "curate", raising(AssertionError("a plan runs nothing")))
    monkeypatch.setattr(storage, "free_bytes", lambda _: 2_000_000)
    assert main([*RUN, "--plan"]) == 0
    shown = capsys.readouterr().out
    assert "plan, from 2 of 9 sources" in shown
    assert all(text in shown for text in ("publish", "1234", "0.500", "2,000,000", "5,000 bytes"))
    assert "price" not in shown
    monkeypatch.setattr(storage, "free_bytes", lambda _: 1_999_999)
    assert main([*RUN, "--plan"]) == 1
    assert "out has 1999999 bytes free, the plan needs 2000000; free some space" in capsys.readouterr().err
    monkeypatch.setattr(storage, "free_bytes", lambda _: None)
    assert main([*RUN, "--plan"]) == 0


def test_a_plan_has_a_price_where_hours_have_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Said) -> None:
    line = Line(stage="label", tasks=1, items=1, cpu_hours=3.0, gpu_hours=2.0, bytes=0)
    monkeypatch.setattr(commands, "estimate", lambda _: Plan(lines=(line,), memory_bytes=1, sampled=1, sources=1))
    (tmp_path / "c.toml").write_text('[price]\ncpu_hour = 0.5\ngpu_hour = 4\ncurrency = "EUR"\n')
    assert main([*RUN, "--plan", "--config", str(tmp_path / "c.toml")]) == 0
    assert "price: 9.50 EUR" in capsys.readouterr().out


def test_the_demo_runs_the_main_job_on_a_world_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    jobs: list[Job] = []

    def curate(job: Job) -> Result:
        jobs.append(job)
        return result()

    for name, count in (("VIDEOS", 2), ("IMAGES", 3), ("LABELLED", 4)):
        monkeypatch.setattr(demo, name, count)
    monkeypatch.setattr(demo, "curate", curate)
    output = tmp_path / "[demo]"
    assert main(["demo", "--output", str(output), "--target-size", "7", "--seed", "3", "--workers", "2"]) == 0
    (job,) = jobs
    assert (job.target, job.seed, job.runner.workers, job.output) == (7, 3, 2, str(output))
    assert job.config == demo.demo_config() != Config()
    assert len(list(Path(job.inputs[0]).iterdir())) == 5
    assert len(list((job.labelled / "images").iterdir())) == 4
    assert Path(str(job.attributes)).is_file()
    shown = capsys.readouterr()
    assert f"2 videos and 3 images in {output}/world" in shown.err
    assert "200 chosen" in shown.out


def test_a_world_that_cannot_be_drawn_is_an_input_error(tmp_path: Path, capsys: Said) -> None:
    (tmp_path / "file").write_bytes(b"")
    assert main(["demo", "--output", str(tmp_path / "file")]) == 1
    assert capsys.readouterr().err.startswith("curate: error: the demo's world: ")


# teach ----------------------------------------------------------------------------------------------------------------


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda lab: lab.rename(lab.with_name("aside")), "--labelled: '{lab}/images' must be a folder"),
        (lambda lab: (lab / "masks").rename(lab / "mask"), "--labelled: '{lab}/masks' must be a folder"),
        (lambda lab: [p.unlink() for p in lab.glob("*/*")], "images/ must hold at least one image, is empty"),
        (lambda lab: [p.unlink() for p in lab.glob("*/[1-9].png")], "at least two labelled images"),
        (lambda lab: (lab / "masks/2.png").unlink(), "an image must have a mask of the same stem in masks/"),
        (lambda lab: (lab / "masks/2.png").write_bytes(b"x"), "every file must be an image within the limits"),
        (lambda lab: truncate(lab / "images/2.png"), "images/2.png': Truncated"),
        (lambda lab: truncate(lab / "masks/1.png"), "masks/1.png': Truncated"),
    ],
)
def test_a_labelled_set_that_is_no_good_is_one_line(
    tmp_path: Path, spoil: Callable[[Path], object], message: str, capsys: Said
) -> None:
    draw_labelled(tmp_path / "lab")
    spoil(tmp_path / "lab")
    assert main(["teach", "--labelled", str(tmp_path / "lab"), "--output", str(tmp_path / "out")]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("curate: error: ")
    assert message.format(lab=tmp_path / "lab") in shown.err
    assert len(shown.err.splitlines()) == 1


def test_a_teacher_is_taught_once(tmp_path: Path, capsys: Said) -> None:
    draw_labelled(tmp_path / "lab")
    (tmp_path / "c.toml").write_text(CONFIG.replace("steps = 12", "steps = 3"))
    argv = ["teach", "--labelled", str(tmp_path / "lab"), "--output", str(tmp_path / "out")]
    argv += ["--config", str(tmp_path / "c.toml")]
    assert main([*argv, "--seed", "1"]) == 0
    shown = capsys.readouterr()
    path, said = shown.out.strip().split("  ", 1)
    assert said.startswith("held-out IoU 0.")
    assert said.endswith(load_teacher(Path(path)).sha256)
    assert main([*argv, "--seed", "1"]) == 0
    again = capsys.readouterr()
    assert again.out == shown.out
    assert "is finished" in again.err
    assert main([*argv, "--seed", "2"]) == 1
    assert "curate: error: teach: " in capsys.readouterr().err


# verify ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run: two releases and its stages."""
    made = draw_published(tmp_path_factory.mktemp("cli") / "[drawn]")
    run = draw_run(made, made.run("publish"))
    for config in (run.config, Config(publish=made.config)):
        write(
            str(made.drawn.folder),
            type(run)(**{n: getattr(run, n) for n in run.__slots__} | {"config": config}),
            made.shards,
        )
    return made.drawn.folder


def test_nothing_to_verify_is_an_error(tmp_path: Path, capsys: Said) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        assert main(["verify", str(folder)]) == 1
        shown = capsys.readouterr()
        assert shown.out == ""
        assert f"curate: error: {folder}: no release.json here or in releases/*/" in shown.err
        assert len(shown.err.splitlines()) == 1


def test_good_releases_are_good_by_folder_or_by_root(root: Path, capsys: Said) -> None:
    one, other = sorted((root / "releases").iterdir())
    assert main(["verify", str(one)]) == 0
    assert capsys.readouterr() == (f"{one}: good\n", "")
    assert main(["verify", str(root)]) == 0
    assert capsys.readouterr() == (f"{one}: good\n{other}: good\n", "")


def test_a_damaged_release_is_told_file_by_file_and_the_others_stay_good(root: Path, capsys: Said) -> None:
    one, other = sorted((root / "releases").iterdir())
    shard = min((one / "shards").rglob("*.parquet"))
    whole, stats = shard.read_bytes(), (one / "stats.json").read_bytes()
    shard.unlink()  # a link to the file of the stage
    shard.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    (one / "stats.json").write_bytes(stats + b" ")
    try:
        assert main(["verify", str(root)]) == 1
        shown = capsys.readouterr()
        assert shown.out == f"{one}: 2 problems\n{other}: good\n"
        told = sorted(shown.err.splitlines())
        assert told[0].startswith(f"{shard}: sha256 is ")
        assert told[1] == f"{one}/stats.json: has {len(stats) + 1} bytes, expected {len(stats)}"
    finally:
        shard.write_bytes(whole)
        (one / "stats.json").write_bytes(stats)
    assert main(["verify", str(root)]) == 0


def test_a_release_whose_list_was_edited_is_told(root: Path, capsys: Said) -> None:
    one, _ = sorted((root / "releases").iterdir())
    before = (one / "release.json").read_bytes()
    (one / "release.json").write_bytes(before.replace(b'"seed":2', b'"seed": 2'))
    try:
        assert main(["verify", str(one)]) == 1
        shown = capsys.readouterr()
        assert (
            shown.err
            == f"{one}/release.json: release.json is not in canonical form (sorted keys, no spaces): was it edited?\n"
        )
        assert shown.out == f"{one}: 1 problem\n"
    finally:
        (one / "release.json").write_bytes(before)
