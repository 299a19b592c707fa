import csv
import itertools
import json
import tomllib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from rich.console import Console

from pipeline.errors import CurateError, InputError, UsageError
from pipeline.search import SearchResult, search, show
from pipeline.search_data import read_scoring_set
from students.model import StudentConfig
from students.search import Candidate, Space, work
from tests.students.releases import draw, write_drawn

TINY = StudentConfig(channels=(8, 8, 8, 8, 8, 8), depths=(1, 1, 1, 1, 1), decoder=(8, 8, 8, 8))
SPACE = Space(tables=(TINY,), widths=(1.0, 1.5, 2.0), deeper=(0, 1), kernels=(0,), decoders=(1.0,), sides=(64, 96, 128))
PNG = b"\x89PNG\r\n\x1a\n"


class Clock:
    """A machine whose time per operation is known; it counts what was measured, and can be killed."""

    def __init__(self, *, kill_after: int = 10**9) -> None:
        self.measured: list[str] = []
        self.kill_after = kill_after

    def __call__(self, candidates: Sequence[Candidate]) -> tuple[list[float], float]:
        if len(self.measured) + len(candidates) > self.kill_after:
            raise KeyboardInterrupt
        self.measured += [candidate.key for candidate in candidates]
        return [0.2 + work(candidate).macs / 1e6 for candidate in candidates], 2.0


def run(output: Path, budget: float = 12.0, *, clock: Clock | None = None, **options: object) -> SearchResult:
    given = {"trials": 12, "shapes": 6} | options
    return search(budget, output, space=SPACE, measure=clock or Clock(), **given)  # type: ignore[arg-type]


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """Twelve pictures of a bright square, which is the person."""
    folder = tmp_path / "labelled"
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for index in range(12):
        mask = np.zeros((96, 96), np.uint8)
        top, left = rng.integers(8, 40, 2)
        mask[top : top + 40, left : left + 40] = 255
        image = np.repeat(mask[:, :, None] // 2 + rng.integers(0, 60, (96, 96, 1), np.uint8), 3, axis=2)
        cv2.imwrite(str(folder / "images" / f"{index}.png"), image)
        cv2.imwrite(str(folder / "masks" / f"{index}.png"), mask)
    return folder


def test_the_front_is_within_the_budget_and_nobody_there_is_better_in_both(tmp_path: Path) -> None:
    result = run(tmp_path)
    fitting = [row for row in result.rows if row.latency_ms <= 12]
    assert len(result.rows) == 12
    for row in fitting:
        assert row.score is not None
        better = [o for o in fitting if o.latency_ms < row.latency_ms and (o.score or 0) > row.score]
        assert bool(better) != row.on_front
    assert all(row.latency_ms <= 12 for row in result.front)
    assert all((a.score or 0) < (b.score or 0) for a, b in itertools.pairwise(result.front))


def test_what_is_written_says_the_same_as_the_result(tmp_path: Path) -> None:
    result = run(tmp_path)
    with (tmp_path / "search.csv").open() as file:
        rows = {row["key"]: row for row in csv.DictReader(file)}
    record = json.loads((tmp_path / "search.json").read_text())
    assert {key for key, row in rows.items() if row["on_front"] == "yes"} == {r.candidate.key for r in result.front}
    for row in result.rows:
        assert float(rows[row.candidate.key]["latency_ms"]) == pytest.approx(row.latency_ms, abs=1e-3)
    assert [member["side"] for member in record["front"]] == [row.candidate.side for row in result.front]
    assert [tomllib.loads(m["toml"])["train"]["side"] for m in record["front"]] == [m["side"] for m in record["front"]]
    assert "says nothing of people" in record["note"]
    assert (tmp_path / "search.png").read_bytes().startswith(PNG)


def test_two_searches_of_one_seed_measure_the_same_and_another_seed_others(tmp_path: Path) -> None:
    clocks = [Clock(), Clock(), Clock()]
    for name, clock, seed in zip("abc", clocks, (0, 0, 1), strict=True):
        run(tmp_path / name, clock=clock, seed=seed, shapes=2)
    assert clocks[0].measured == clocks[1].measured
    assert clocks[0].measured != clocks[2].measured


def test_a_killed_search_goes_on_and_ends_as_if_nothing_had_happened(tmp_path: Path) -> None:
    killed, resumed = Clock(kill_after=7), Clock()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", clock=killed)
    again = run(tmp_path / "killed", clock=resumed)
    whole = run(tmp_path / "whole")
    assert killed.measured
    assert not set(killed.measured) & set(resumed.measured)
    assert again.rows == whole.rows
    assert (tmp_path / "killed" / "search.csv").read_bytes() == (tmp_path / "whole" / "search.csv").read_bytes()


def test_another_budget_uses_what_was_measured(tmp_path: Path) -> None:
    run(tmp_path, 12.0)
    clock = Clock()
    tighter = run(tmp_path, 3.0, clock=clock)
    assert clock.measured == []
    assert max(row.latency_ms for row in tighter.front) <= 3.0


def test_a_machine_that_is_slower_for_a_while_does_not_bend_the_order(tmp_path: Path) -> None:
    class Disturbed(Clock):
        def __call__(self, candidates: Sequence[Candidate]) -> tuple[list[float], float]:
            ratios, ms = super().__call__(candidates)
            return ratios, ms * (1 + len(self.measured) % 3)

    quiet, disturbed = run(tmp_path / "quiet"), run(tmp_path / "disturbed", clock=Disturbed())
    measured = {row.candidate.key: row.latency_ms / disturbed.reference_ms for row in disturbed.rows}
    for row in quiet.rows:
        assert measured.get(row.candidate.key, row.latency_ms / 2.0) == pytest.approx(row.latency_ms / 2.0)


def test_a_budget_that_nothing_meets_names_the_fastest_and_its_time(tmp_path: Path) -> None:
    clock = Clock()
    with pytest.raises(CurateError, match=r"met by none of \d+ candidates; the fastest, .* at side 64 .* raise --tri"):
        run(tmp_path, 0.01, clock=clock)
    assert len(clock.measured) >= 4
    with pytest.raises(CurateError, match=r"of 18 candidates; .*; raise the budget$"):
        run(tmp_path, 0.01, clock=clock, trials=99)


def test_where_earlier_searches_measured_as_many_it_is_said_how_to_measure_more(tmp_path: Path) -> None:
    said: list[str] = []
    run(tmp_path, 12.0, trials=6)
    run(tmp_path, 3.0, trials=6, report=said.append)
    assert said == ["6 candidates were measured before; raise --trials to measure more for 3 ms"]


def test_every_table_of_a_space_is_measured_first(tmp_path: Path) -> None:
    tables = tuple(replace(TINY, decoder=(8, 8, 8, width)) for width in (8, 12, 16))
    clock = Clock()
    search(1e6, tmp_path, space=replace(SPACE, tables=tables), trials=5, shapes=4, measure=clock)
    wanted = [Candidate(config=replace(table, in_channels=4), side=128).key for table in tables]
    assert clock.measured[:3] == wanted


@pytest.mark.parametrize(
    ("budget", "options", "rule"),
    [
        (0.0, {}, "must be above 0"),
        (float("nan"), {}, "must be above 0"),
        (float("inf"), {}, "must be above 0 and finite"),
        (5.0, {"trials": 3}, "--trials must be >= 4"),
        (5.0, {"steps": 0}, "--steps must be >= 1"),
        (5.0, {"seed": -1}, "--seed must be >= 0"),
        (5.0, {"aspect": 100.0}, "--aspect"),
        (5.0, {"aspect": float("nan")}, "--aspect"),
        (5.0, {"labelled": Path("a"), "release": Path("b")}, "give one of them"),
    ],
)
def test_nonsense_is_refused_before_anything_is_done(
    tmp_path: Path, budget: float, options: dict[str, object], rule: str
) -> None:
    clock = Clock()
    with pytest.raises(UsageError, match=rule):
        run(tmp_path / "out", budget, clock=clock, **options)
    assert not clock.measured
    assert not (tmp_path / "out").exists()


def test_the_folder_of_another_search_is_refused(tmp_path: Path) -> None:
    run(tmp_path, seed=0)
    with pytest.raises(InputError, match=r"belongs to another search \(seed differ\)"):
        run(tmp_path, seed=1)
    before = (tmp_path / "search.json").read_bytes()
    with pytest.raises(InputError, match=r"belongs to another search \(space differ\)"):
        search(12.0, tmp_path, space=replace(SPACE, widths=(1.0, 2.0)), trials=12, shapes=4, measure=Clock())
    assert (tmp_path / "search.json").read_bytes() == before


def test_while_a_search_runs_no_earlier_result_stands_there(tmp_path: Path) -> None:
    run(tmp_path, 12.0)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, 1000.0, trials=16, clock=Clock(kill_after=0))
    assert set(json.loads((tmp_path / "search.json").read_text())) == {"search"}
    assert not (tmp_path / "search.png").exists()
    with (tmp_path / "search.csv").open() as file:
        assert {row["on_front"] for row in csv.DictReader(file)} == {""}


@pytest.mark.parametrize("name", ["search.csv", "search.json"])
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, name: str) -> None:
    run(tmp_path)
    text = (tmp_path / name).read_text()
    (tmp_path / name).write_text(text[: len(text) // 2])
    with pytest.raises(InputError, match=name.replace(".", r"\.")):
        run(tmp_path)


def test_labels_that_are_none_are_refused_as_input(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="labelled set has images/ and masks/"):
        run(tmp_path / "out", labelled=tmp_path / "nothing")
    with pytest.raises(InputError, match="nothing"):
        run(tmp_path / "out", release=tmp_path / "nothing")


def test_the_split_is_a_function_of_seed_and_names_and_nobody_is_on_both_sides(labelled: Path) -> None:
    first, again, other = (read_scoring_set(labelled, None, seed) for seed in (0, 0, 1))
    assert first.digest == again.digest != other.digest
    trained, held_out = ({e.image.tobytes() for e in part} for part in (first.trained, first.held_out))
    assert (len(trained), len(held_out)) == (9, 3)
    assert not trained & held_out


def test_with_labels_the_score_is_what_short_trainings_reach(tmp_path: Path, labelled: Path) -> None:
    clock = Clock()
    result = run(tmp_path / "out", 4.0, clock=clock, labelled=labelled, trials=6, steps=4)
    scored = [row for row in result.rows if row.score is not None]
    assert result.scored_by == "held-out IoU"
    assert all(row.latency_ms <= 4.0 and 0 <= (row.score or 0) <= 1 for row in scored)
    assert {row.steps for row in result.front} == {4}
    assert not any((tmp_path / "out" / "trainings").iterdir())
    again = run(tmp_path / "out", 4.0, clock=clock, labelled=labelled, trials=6, steps=4)
    assert again.rows == result.rows
    whole = run(tmp_path / "whole", 4.0, labelled=labelled, trials=6, steps=4)
    assert [row.score for row in whole.rows] == [row.score for row in result.rows]


def test_a_release_is_scored_on_its_val_split_after_training_on_its_train_split(tmp_path: Path) -> None:
    trained, held_out = ([draw(seed) for seed in seeds] for seeds in (range(12), range(20, 24)))
    trained[3] = replace(trained[3], weight=0.0)
    folder = write_drawn(tmp_path / "release", trained, held_out)
    data = read_scoring_set(None, folder, 0)
    assert [example.image.shape for example in data.held_out] == [one.image.shape for one in held_out]
    for example, one in zip(data.held_out, held_out, strict=True):
        assert np.array_equal(example.target, one.mask)
    assert len(data.trained) == 11
    result = run(tmp_path / "out", 4.0, release=folder, trials=4, steps=4)
    assert result.scored_by == "held-out IoU"
    assert all(0 <= (row.score or 0) <= 1 and row.steps == 4 for row in result.front)
    write_drawn(tmp_path / "other", trained, held_out[::-1])
    with pytest.raises(InputError, match=r"another search \(data differ\)"):
        run(tmp_path / "out", 4.0, release=tmp_path / "other", trials=4, steps=4)


def test_candidates_are_measured_as_they_are_shipped(tmp_path: Path) -> None:
    one = replace(SPACE, sides=(64, 128, 192, 320))
    result = search(1000.0, tmp_path, space=one, trials=4, shapes=0, aspect=0.6)
    assert [row.candidate.side for row in sorted(result.rows, key=lambda row: row.mmac)] == list(one.sides)
    assert [row.candidate.side for row in result.rows] == list(one.sides)
    assert result.reference_ms > 0
    console = Console(record=True, width=120)
    show(result, console)
    assert "preset" in console.export_text()
