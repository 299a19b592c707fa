"""The commands about a finished release, as a user gives them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from manifests.lineage import newest_release
from manifests.release import read_release
from manifests.verify import verify_release
from pipeline.cli import main
from review.log import Reviewer, ReviewLog
from tests.review import releases

Said = pytest.CaptureFixture[str]
ADA, BOB = (Reviewer(name=name) for name in ("Ada", "Bob"))
AT = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[releases.Sample]]:
    samples = releases.figures(30)
    return releases.write(tmp_path_factory.mktemp("desk"), samples), samples


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return releases.write(tmp_path / "out", releases.figures(30))


def _decide(folder: Path, sample: releases.Sample, verdict: str, reviewer: Reviewer = ADA) -> None:
    ReviewLog.open(folder).append(
        "sample_decision",
        reviewer=reviewer,
        at=AT,
        target={"ids": [sample.id]},
        verdict=verdict,
        reasons=["hand missing"],
        adjudicates=False,
    )


def _of(decision: str) -> releases.Sample:
    return next(sample for sample in releases.figures(30) if sample.decision == decision)


def test_the_commands_about_a_release_load_no_torch_and_no_beam(made: tuple[Path, list[releases.Sample]]) -> None:
    for argv in (["diff", "{}", "{}"], ["review", "verify", "{}"], ["verify", "{}"], ["report", "{}", "--no-images"]):
        words = [word.format(made[0]) for word in argv]
        code = (
            f"import sys; from pipeline.cli import main; code = main({words!r}); "
            f"sys.exit(code or sum(name in sys.modules for name in ('torch', 'apache_beam', 'faiss')))"
        )
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_report_a_card_and_a_description_are_written_beside_the_releases(folder: Path, capsys: Said) -> None:
    root = folder.parent.parent
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert main(["report", str(root), "--samples", "9", "--no-images"]) == 0
    assert main(["croissant", str(root)]) == 0
    assert main(["datacard", str(root)]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert f"{root}/reports/{folder.name}.html: 9 samples, no pictures" in shown[0]
    assert json.loads((root / "reports" / folder.name / "croissant.json").read_bytes())["conformsTo"]
    assert "questions open" in shown[2]
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_answers_close_questions_and_an_unknown_key_is_refused(folder: Path, tmp_path: Path, capsys: Said) -> None:
    answers = tmp_path / "answers.toml"
    answers.write_text('purpose = "backgrounds of calls"\n')
    assert main(["datacard", str(folder), "--answers", str(answers)]) == 0
    assert " purpose" not in capsys.readouterr().out
    answers.write_text('purpos = "backgrounds of calls"\n')
    assert main(["datacard", str(folder), "--answers", str(answers)]) == 2
    assert "did you mean 'purpose'" in capsys.readouterr().err


def test_decisions_become_the_next_release_which_every_command_then_takes(folder: Path, capsys: Said) -> None:
    root, kept, held = folder.parent.parent, _of("keep"), _of("hold")
    _decide(folder, kept, "reject")
    _decide(folder, held, "approve")
    assert main(["apply-reviews", str(root)]) == 0
    follower = newest_release(root)
    assert follower != folder.resolve()
    assert verify_release(follower) == []
    assert main(["apply-reviews", str(folder)]) == 0, "given again, it is the same release"
    assert newest_release(root) == follower
    capsys.readouterr()
    assert main(["diff", str(folder), str(root), "--json", str(root / "diff.json")]) == 0
    shown = capsys.readouterr().out
    assert "B was made from A" in shown
    assert kept.id in shown
    assert json.loads((root / "diff.json").read_bytes())["samples"]["decision"] == 2


def test_disputed_samples_are_refused_until_they_are_settled_or_held(folder: Path, capsys: Said) -> None:
    sample = _of("keep")
    _decide(folder, sample, "reject")
    _decide(folder, sample, "approve", BOB)
    assert main(["apply-reviews", str(folder)]) == 1
    assert sample.id in capsys.readouterr().err
    assert main(["apply-reviews", str(folder), "--disputed", "hold"]) == 0
    counts = (read_release(folder).counts, read_release(newest_release(folder.parent.parent)).counts)
    assert counts[1].held == counts[0].held + 1


def test_labels_go_out_to_be_drawn_again_and_come_back(folder: Path, tmp_path: Path, capsys: Said) -> None:
    _decide(folder, _of("keep"), "redraw")
    out = tmp_path / "labels"
    assert main(["export-labels", str(folder), "--output", str(out), "--redraw"]) == 0
    assert "labels: 1 image;" in capsys.readouterr().out
    coco = out / "annotations.json"
    value = json.loads(coco.read_bytes())
    runs = value["annotations"][0]["segmentation"]["counts"]
    runs[:2] = [runs[0] - 2, runs[1] + 2]  # two pixels more
    coco.write_text(json.dumps(value))
    assert main(["import-labels", str(folder), str(coco)]) == 0
    assert "1 mask corrected" in capsys.readouterr().out
    assert verify_release(newest_release(folder.parent.parent)) == []
    value["images"][0]["width"] += 1
    coco.write_text(json.dumps(value))
    assert main(["import-labels", str(folder), str(coco)]) == 1
    assert "1 fault, so nothing was imported" in capsys.readouterr().err
    assert main(["export-labels", str(folder), "--output", str(out), "--query", '{"splitt":["val"]}']) == 2
    assert "did you mean 'split'" in capsys.readouterr().err


def _files(*folders: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()}


INTO: dict[str, list[str]] = {
    "diff": ["diff", "{a}", "{b}", "--json", "{b}/stats.json"],
    "diff, a new file": ["diff", "{a}", "{b}", "--json", "{a}/shards/new.json"],
    "croissant": ["croissant", "{a}", "--output", "{b}/stats.json"],
    "croissant, of its own": ["croissant", "{a}", "--output", "{a}/config.json"],
    "croissant, as the other's": ["croissant", "{a}", "--output", "{b}/croissant.json"],
    "datacard": ["datacard", "{a}", "--output", "{b}/release.json"],
    "report": ["report", "{a}", "--no-images", "--output", "{b}/stats.json"],
    "export-labels": ["export-labels", "{a}", "--query", "{{}}", "--output", "{b}/lab"],
    "export-labels, of its own": ["export-labels", "{a}", "--query", "{{}}", "--output", "{a}/shards/lab"],
}


@pytest.mark.parametrize("command", INTO)
def test_no_command_writes_into_any_committed_release(
    made: tuple[Path, list[releases.Sample]], folder: Path, capsys: Said, command: str
) -> None:
    before = _files(made[0], folder)
    assert main([word.format(a=made[0], b=folder) for word in INTO[command]]) == 2
    assert "which nobody may change" in capsys.readouterr().err
    assert _files(made[0], folder) == before


def test_what_a_reader_finds_beside_the_commit_leaves_the_release_good(folder: Path) -> None:
    assert main(["croissant", str(folder), "--output", str(folder / "croissant.json")]) == 0
    assert main(["datacard", str(folder), "--output", str(folder / "datacard.md")]) == 0
    assert main(["verify", str(folder)]) == 0
    (folder / "labels").mkdir()
    (folder / "labels" / "face.jpg").write_bytes(b"x")
    assert main(["verify", str(folder)]) == 1


WRONG: dict[str, tuple[list[str], str]] = {
    "more samples than a report shows": (["report", "{a}", "--samples", "9999"], "at most 5000, got 9999"),
    "a report in the place of a folder": (["report", "{a}", "--output", "{tmp}"], "is a folder; name a file"),
    "a card in the place of a folder": (["datacard", "{a}", "--output", "{tmp}"], "is a folder; name a file"),
    "numbers in the place of a folder": (["diff", "{a}", "{a}", "--json", "{tmp}"], "is a folder; name a file"),
    "a port that no machine has": (["review", "{a}", "--port", "99999"], "must be 0 for any that is free"),
    "a port for the system": (["review", "{a}", "--port", "80"], "must be 0 for any that is free"),
    "nobody": (["forget", "{tmp}", "--subject", ""], "must be a text, got nothing"),
    "no consent": (["forget", "{tmp}", "--consent-ref", " "], "must be a text, got nothing"),
    "no reason": (["forget", "{tmp}", "--subject", "s", "--reason", ""], "must be a text, got nothing"),
    "no answers": (["croissant", "{a}", "--answers", "{tmp}/none"], "none cannot be read: No such file or directory;"),
    "answers that are no TOML": (["datacard", "{a}", "--answers", "{a}/release.json"], "release.json: "),
    "more rows than a page": (["diff", "{a}", "{a}", "--rows", "2147483647"], "at most 1000, got 2147483647"),
    "a filter of many levels": (
        ["export-labels", "{a}", "--output", "{tmp}/x", "--query", "[" * 20_000],
        "--query: it has too many levels",
    ),
    "half a letter": (
        ["export-labels", "{a}", "--output", "{tmp}/x", "--query", '{{"group":"\\ud800"}}'],
        "--query: 'utf-8' codec can't encode",
    ),
    "a list as a word": (
        ["export-labels", "{a}", "--output", "{tmp}/x", "--query", '{{"sort":' + "[" * 900 + "]" * 900 + "}}"],
        "--query: ",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_usage_has_a_code_of_its_own_and_says_what_is_right(
    made: tuple[Path, list[releases.Sample]], tmp_path: Path, capsys: Said, wrong: str
) -> None:
    words, told = WRONG[wrong]
    assert main([word.format(a=made[0], tmp=tmp_path) for word in words]) == 2
    assert told in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_pipe_is_not_replaced_by_a_file(
    made: tuple[Path, list[releases.Sample]], tmp_path: Path, capsys: Said
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for words in (["croissant", "--output"], ["datacard", "--output"], ["report", "--no-images", "--output"]):
        assert main([words[0], str(made[0]), *words[1:], str(pipe)]) == 2
        assert "is a device or a pipe" in capsys.readouterr().err
        assert pipe.is_fifo()


@pytest.mark.parametrize(
    "words",
    [
        ["diff", "{a}", "{a}", "--json", "{tmp}/file/x.json"],
        ["croissant", "{a}", "--output", "{tmp}/file/x.json"],
        ["report", "{a}", "--no-images", "--samples", "1", "--output", "{tmp}/file/x.html"],
        ["datacard", "{a}", "--answers", "{tmp}/none.toml"],
        ["import-labels", "{a}", "{tmp}/none.json"],
    ],
)
def test_a_file_that_cannot_be_opened_is_named_once_with_a_remedy(
    made: tuple[Path, list[releases.Sample]], tmp_path: Path, capsys: Said, words: list[str]
) -> None:
    (tmp_path / "file").write_text("no folder")
    assert main([word.format(a=made[0], tmp=tmp_path) for word in words]) in (1, 2)
    told = capsys.readouterr().err
    assert "Errno" not in told
    assert told.count(str(tmp_path)) == 1
    assert "; name " in told or ", or name " in told


def test_no_value_of_a_release_steers_the_terminal(tmp_path: Path, capsys: Said) -> None:
    hostile = "\x1b[31mFORGED\x1b]0;t\x07\u202e\x9b2J"
    samples = releases.figures(24)
    other = [replace(one, attributes={**one.attributes, "lighting_level": hostile}) for one in samples]
    a, b = releases.write(tmp_path / "a", samples), releases.write(tmp_path / "b", other)
    for words in (["diff", str(a), str(b)], ["diff", str(b), str(a)]):
        assert main(words) == 0
        shown = capsys.readouterr().out
        assert "FORGED" in shown
        assert all(letter.isprintable() or letter == "\n" for letter in shown)


def test_as_many_changed_samples_are_listed_as_are_asked_for_and_the_rest_counted(tmp_path: Path, capsys: Said) -> None:
    samples = releases.figures(130)
    a, b = releases.write(tmp_path / "a", samples), releases.write(tmp_path / "b", samples[:2])
    for rows in (0, 5, 13, 110, 128, 1000):
        assert main(["diff", str(a), str(b), "--rows", str(rows)]) == 0
        shown = capsys.readouterr().out
        assert sum(one.id in shown for one in samples) == min(rows, 128)
        more = f"and {128 - rows} more; --rows lists up to 1000 of a kind" in shown
        assert more == (0 < rows < 128)


def test_numbers_take_the_place_of_others_whole_or_not_at_all(folder: Path, tmp_path: Path, capsys: Said) -> None:
    place = tmp_path / "numbers" / "d.json"
    assert main(["diff", str(folder), str(folder), "--json", str(place)]) == 0
    number = place.stat().st_ino
    assert main(["diff", str(folder), str(folder), "--json", str(place)]) == 0
    assert place.stat().st_ino != number, "another file, renamed"
    assert [path.name for path in place.parent.iterdir()] == ["d.json"]
    assert json.loads(place.read_bytes())["relation"] == "same"
    assert "the same release" in capsys.readouterr().out


def test_a_log_is_checked_and_an_edited_event_is_named(folder: Path, capsys: Said) -> None:
    _decide(folder, _of("keep"), "approve")
    assert main(["review", "verify", str(folder)]) == 0
    assert "1 events" in capsys.readouterr().out
    event = next((folder.parent.parent / "reviews").rglob("*.json"))
    event.write_bytes(event.read_bytes().replace(b"hand", b"hant"))
    log = ReviewLog.open(folder)
    assert main(["review", "verify", str(folder), "--head", "0" * 64]) == 1
    assert "PROBLEM" in capsys.readouterr().out
    assert log.events()[0].fields["reasons"] == ["hant missing"], "the last event alone can be edited unseen"


def test_forgetting_says_first_what_it_would_do(folder: Path, capsys: Said) -> None:
    root = folder.parent.parent
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    assert main(["forget", str(root)]) == 2
    assert main(["forget", str(root), "--subject", "person-video-0", "--dry-run"]) == 0
    assert "dry run, nothing was changed: would forget 3 samples" in capsys.readouterr().out
    after = {path: path.read_bytes() for path in root.rglob("*") if path.is_file() and path.name != ".lock"}
    assert after == before
    assert main(["forget", str(root), "--subject", "person-video-0"]) == 0
    follower = newest_release(root)
    assert read_release(follower).counts.read == 30 + 6 - 3
    assert verify_release(follower) == []
    assert main(["forget", str(root), "--subject", "nobody"]) == 1
    assert "subject 'nobody'" in capsys.readouterr().err


def test_a_page_that_needs_its_extra_says_how_to_install_it(folder: Path) -> None:
    code = (
        "import sys; sys.modules['starlette'] = None; from pipeline.cli import main; "
        f"sys.exit(main(['review', {str(folder)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "pip install 'curate[review]'" in done.stderr
