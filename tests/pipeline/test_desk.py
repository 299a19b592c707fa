"""The commands about a finished release, as a user gives them."""

from __future__ import annotations

import json
import subprocess
import sys
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
    assert main(["datacard", str(folder), "--answers", str(answers)]) == 1
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
    assert "1 images" in capsys.readouterr().out
    coco = out / "annotations.json"
    value = json.loads(coco.read_bytes())
    runs = value["annotations"][0]["segmentation"]["counts"]
    runs[:2] = [runs[0] - 2, runs[1] + 2]  # two pixels more
    coco.write_text(json.dumps(value))
    assert main(["import-labels", str(folder), str(coco)]) == 0
    assert "1 masks corrected" in capsys.readouterr().out
    assert verify_release(newest_release(folder.parent.parent)) == []
    value["images"][0]["width"] += 1
    coco.write_text(json.dumps(value))
    assert main(["import-labels", str(folder), str(coco)]) == 1
    assert "nothing was imported" in capsys.readouterr().err
    assert main(["export-labels", str(folder), "--output", str(out), "--query", '{"splitt":["val"]}']) == 2
    assert "did you mean 'split'" in capsys.readouterr().err


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
