"""The data card: numbers of the release alone, open questions visibly open, and no value that becomes Markdown."""

import re
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from evaluation.classical import wilson_interval
from manifests.datacard import (
    QUESTIONS,
    DataCardError,
    check_answers,
    datacard,
    escape,
    open_questions,
    read_answers,
    write_datacard,
)
from manifests.edits import Edit
from manifests.paper import PaperError
from manifests.release import canonical_json, fingerprint, read_release, read_release_bytes
from manifests.shard import ShardError
from manifests.signoff import review_folder
from manifests.successor import write_successor
from manifests.tally import tally
from manifests.verify import verify_release
from tests.review import releases

NOW = datetime(2026, 3, 1, tzinfo=UTC)
ALL: dict[str, str | bool] = {q.key: True if q.kind == "yes" else f"answer to {q.key}" for q in QUESTIONS}
MARKDOWN = MarkdownIt("gfm-like", {"linkify": False}).enable("table")


def interval(part: int, whole: int) -> tuple[float, float]:
    return wilson_interval(part, whole, 0.95)


def card(release: Path, answers: dict[str, Any] | None = None) -> str:
    return datacard(release, answers or {}, interval=interval, now=NOW)


def table(text: str, head: str) -> list[list[str]]:
    """The cells of the table whose head begins so."""
    lines = text.split(f"| {head}", 1)[1].split("\n\n", maxsplit=1)[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


@pytest.fixture(scope="module")
def samples() -> list[releases.Sample]:
    return releases.figures(60)


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory, samples: list[releases.Sample]) -> Path:
    return releases.write(tmp_path_factory.mktemp("root"), samples)


# Numbers --------------------------------------------------------------------------------------------------------------


def test_every_row_is_counted_once(release: Path, samples: list[releases.Sample]) -> None:
    rows = tally(release)
    assert rows.all == len(samples)
    assert rows.kept == sum(s.decision == "keep" for s in samples)
    assert rows.licences.total() == rows.consents.total() == rows.all
    assert rows.label_sources.total() == rows.kept
    for name in rows.attributes:
        assert rows.values(name).total() == rows.all
        assert rows.provenance(name).total() == rows.kept
        for value, number in rows.values(name, "keep").items():
            assert number == sum(s.attributes.get(name) == value for s in samples if s.decision == "keep")


def test_the_funnel_of_the_card_is_that_of_the_release(release: Path) -> None:
    counts = read_release(release).counts
    (row,) = table(card(release), "read ")
    assert list(map(int, row)) == [getattr(counts, name) for name in counts.__slots__]
    assert int(row[0]) == sum(map(int, row[1:]))


def test_unknown_is_shown_and_the_share_is_right(release: Path, samples: list[releases.Sample]) -> None:
    kept = [s for s in samples if s.decision == "keep"]
    rows = {row[0]: row for row in table(card(release), "attribute | values")}
    for name in releases.ATTRIBUTES:
        unknown = sum(s.attributes[name] is None for s in kept)
        assert rows[name][2] == f"{100 * unknown / len(kept):.1f} %"
        assert int(rows[name][4]) == len(kept) - unknown  # by models


def test_the_table_of_bias_flags_what_the_filter_treats_differently(tmp_path: Path) -> None:
    figure = releases.figure(1)
    light = [("bright", 60, 5), ("dark", 60, 50), ("dim", 10, 10), (None, 40, 16)]
    samples = [
        releases.Sample(
            number=1000 * at + number,
            image=figure[0],
            mask=figure[1],
            decision="hold" if number < held else "keep",
            attributes={"lighting_level": value},
        )
        for at, (value, all_, held) in enumerate(light)
        for number in range(all_)
    ]
    rows = {
        row[1]: row
        for row in table(card(releases.write(tmp_path, samples)), "attribute | value |")
        if row[0] == "lighting_level"
    }
    assert {value: row[2:4] for value, row in rows.items()} == {
        str(value or "unknown"): [str(all_), str(held)] for value, all_, held in light
    }
    assert {value: row[-1].strip() for value, row in rows.items()} == {
        "bright": "**flagged**",
        "dark": "**flagged**",
        "dim": "too few",
        "unknown": "",
    }


def test_rights_and_the_judge_are_told(tmp_path: Path) -> None:
    samples = releases.figures(8)
    samples[0] = replace(samples[0], row={"licence": "unknown", "retention_until": date(2027, 5, 6), "subject_ids": []})
    text = card(releases.write(tmp_path, samples))
    assert table(text, "licence") == [["CC-BY-4.0", "7"], ["unknown", "1"]]
    assert "8 of 8 rows have a date until which they may be kept, the earliest on 2027-05-06." in text
    assert "Rows that name a person's pseudonym: 7;" in text
    assert "calibrated by people" in text
    assert "The judge left no note" in text


def test_a_changed_table_is_refused(tmp_path: Path) -> None:
    folder = releases.write(tmp_path, releases.figures(6))
    path = folder / "stats.json"
    path.write_bytes(path.read_bytes().replace(b"{", b"{ ", 1))
    with pytest.raises(ShardError, match="bytes have changed"):
        card(folder)


def test_equal_releases_have_equal_cards(release: Path, tmp_path: Path, samples: list[releases.Sample]) -> None:
    assert card(release, ALL) == card(releases.write(tmp_path, samples[::-1]), ALL)


def test_it_is_written_beside_the_release_and_never_into_it(tmp_path: Path) -> None:
    folder = releases.write(tmp_path, releases.figures(6))
    path = write_datacard(folder, answers=ALL, interval=interval, now=NOW)
    assert path == tmp_path / "reports" / folder.name / "datacard.md"
    assert path.read_text() == card(folder, ALL)
    with pytest.raises(PaperError, match="nobody may change"):
        write_datacard(folder, folder / "config.json", answers={}, interval=interval)
    assert write_datacard(folder, folder / "datacard.md", answers={}, interval=interval).is_file()
    assert verify_release(folder) == []


# Lineage and sign-off -------------------------------------------------------------------------------------------------


def test_the_card_tells_the_state_of_the_sign_off(tmp_path: Path) -> None:
    folder = releases.write(tmp_path, releases.figures(6))
    own = fingerprint(read_release_bytes(folder))
    assert "Sign-off: none:" in card(folder)
    event = {"seq": 0, "prev": None, "release": own, "type": "signoff", "verdict": "approved", "tool": "test"}
    event |= {"reviewer": {"name": "An*na*", "how_known": "not verified"}, "at": "2026-02-01T00:00:00Z"}
    review_folder(folder, own).mkdir(parents=True)
    (review_folder(folder, own) / f"{0:020d}.json").write_bytes(canonical_json(event))
    assert "Sign-off: signed off by An\\*na\\* (not verified) on 2026-02-01." in card(folder)
    (review_folder(folder, own) / f"{0:020d}.json").write_bytes(b"{}")
    assert "Sign-off: not known, for the review log is broken from event 0 on." in card(folder)


def test_a_successor_names_its_parent_and_why(tmp_path: Path) -> None:
    samples = releases.figures(12)
    folder = releases.write(tmp_path, samples)
    kept = next(s for s in samples if s.decision == "keep")
    edit = Edit(decision="drop", reasons=("review",), by="review")
    second, own = write_successor(folder, edits={kept.id: edit}, cause={"by": "apply-reviews"}, at=NOW)
    text = card(second)
    assert f"Made from: `{fingerprint(read_release_bytes(folder))}`." in text
    assert "Made by: apply-reviews." in text
    assert f"Release `{own}`" in text


# Questions ------------------------------------------------------------------------------------------------------------


def test_keys_are_distinct_and_every_section_is_in_the_card(release: Path) -> None:
    assert len({q.key for q in QUESTIONS}) == len(QUESTIONS)
    text = card(release)
    assert {q.section for q in QUESTIONS} <= set(re.findall("^## (.*)$", text, re.MULTILINE))
    order = [text.index(q.question) for q in QUESTIONS]
    assert order == sorted(order)


def test_what_nobody_answered_is_visibly_open(release: Path) -> None:
    text = card(release)
    assert text.count("- [ ] **Open:**") == len(QUESTIONS)
    assert f"**{len(QUESTIONS)} of {len(QUESTIONS)} questions are open.**" in text
    full = card(release, ALL)
    assert "- [ ]" not in full
    assert "**0 of" in full
    assert all(f"> answer to {q.key}" in full for q in QUESTIONS if q.kind == "text")


def test_a_no_and_an_empty_text_leave_a_question_open(release: Path) -> None:
    answers = {**ALL, "rights": False, "purpose": "  \n "}
    assert [q.key for q in open_questions(answers)] == ["purpose", "rights"]
    text = card(release, answers)
    assert "- [ ] **No:** Were licences" in text
    assert text.count("- [ ]") == 2


@pytest.mark.parametrize(
    ("answers", "what"),
    [
        ({"purpos": "x"}, "did you mean 'purpose'"),
        ({"zzz": "x"}, "the keys are purpose, creators"),
        ({"purpose": True}, "must be a text"),
        ({"rights": "yes"}, "must be true or false"),
        ({"rights": 1}, "must be true or false"),
        ({"purpose": "x" * 10_001}, "at most 10000 characters"),
    ],
)
def test_answers_that_fit_no_question_are_refused(answers: dict[str, Any], what: str) -> None:
    with pytest.raises(DataCardError, match=what):
        check_answers(answers)


def test_answers_are_read_from_toml(tmp_path: Path) -> None:
    file = tmp_path / "answers.toml"
    file.write_text('purpose = """\nTwo\nlines\n"""\nrights = true\n')
    assert read_answers(file) == {"purpose": "Two\nlines", "rights": True}
    for text, what in (
        ("purpose = ", "answers.toml"),
        ("purpos = 'x'", "did you mean"),
        ("[purpose]\na = 1", "a text"),
    ):
        file.write_text(text)
        with pytest.raises(DataCardError, match=what):
            read_answers(file)
    with pytest.raises(DataCardError, match=r"none\.toml"):
        read_answers(tmp_path / "none.toml")


# Markdown -------------------------------------------------------------------------------------------------------------


def tokens(text: str) -> set[str]:
    return {inner.type for token in MARKDOWN.parse(text) for inner in [token, *(token.children or ())]}


@given(st.text(max_size=60) | st.text("[]()!<>*_`#|~\\&:/.@-+=1 \n\t\"'ax", max_size=60))
def test_an_escaped_text_shows_its_characters_and_nothing_else(text: str) -> None:
    assert tokens(f"* {escape(text)}") <= {
        "bullet_list_open",
        "list_item_open",
        "paragraph_open",
        "inline",
        "text",
        "text_special",
        "paragraph_close",
        "list_item_close",
        "bullet_list_close",
    }
    shown = "".join(t.content for token in MARKDOWN.parse(f"* {escape(text)}") for t in token.children or ())
    plain = re.sub(r"\s+", " ", text).strip()
    if plain.isprintable():
        assert shown == plain


@pytest.mark.parametrize(
    "value",
    [
        "![x](http://evil.example/a.png)",
        "<img src=x onerror=alert(1)>",
        "<script>alert(1)</script>",
        "a | b | c\n| d | e |",
        "\n\n# A heading\n\n- [x] approved",
        "https://evil.example www.evil.example me@evil.example",
        "`code` **bold** ~~gone~~ &lt;b&gt;",
        "\u202etxt.exe\u0000",
        "=cmd|' /C calc'!A0",
    ],
)
def test_hostile_values_stay_text(tmp_path: Path, value: str) -> None:
    samples = [
        replace(
            s, attributes={**s.attributes, "lighting_level": value}, row={"licence": value, "consent_status": value}
        )
        for s in releases.figures(6)
    ]
    folder = releases.write(tmp_path, samples)
    text = card(folder, {"purpose": value} if value.isprintable() else None)
    plain = card(releases.write(tmp_path / "plain", releases.figures(6)))
    assert tokens(text) - tokens(plain) <= {"text_special", "blockquote_open", "blockquote_close"}
    assert re.findall("^#+ .*$", text, re.MULTILINE)[1:] == re.findall("^#+ .*$", plain, re.MULTILINE)[1:]
    assert "\u202e" not in text
    assert "\u0000" not in text
    assert "<img" not in text
    assert "<script" not in text


def test_a_long_value_is_cut(tmp_path: Path) -> None:
    samples = [replace(s, row={"licence": "x" * 100_000}) for s in releases.figures(6)]
    assert len(card(releases.write(tmp_path, samples))) < 20_000
