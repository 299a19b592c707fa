"""The data card of a release: what is in it, as Markdown, and the questions that only a person can answer.

The order is that of Data Cards (Pushkarna et al., FAccT 2022) and Datasheets for Datasets (Gebru et al., CACM 2021):
motivation, composition, collection, labels, bias, uses, distribution and maintenance. Numbers come from the release
alone. A question nobody has answered stays visibly open; the same questions are the checklist of a sign-off.
"""

import difflib
import re
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any, Literal, TypeAlias

from manifests.paper import paper_path, write_paper
from manifests.release import Release, fingerprint, parse_release, read_release_bytes
from manifests.schema import LABEL_SOURCES, MASK_SPLITS, PROVENANCES
from manifests.signoff import ReviewLogError, signoff_of
from manifests.tally import Tally, tally
from manifests.text import clean

Answers: TypeAlias = Mapping[str, str | bool]
Interval: TypeAlias = Callable[[int, int], tuple[float, float]]
"""(part, whole) -> the interval of the share, as `evaluation.classical.wilson_interval` gives it."""

FILE = "datacard.md"
FLOOR = 30
"""Fewest rows of a value for which the table of bias says whether the filter treats it differently."""
MAX_ANSWER = 10_000
MAX_ANSWERS_BYTES = 1 << 20


class DataCardError(ValueError):
    """Answers that fit no question; the message names the key and the remedy."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """What only a person can say of a release.

    Attributes:
        key: its name in a file of answers and in a sign-off's checklist.
        section: title of the part of the card where it stands.
        question: as it is shown.
        kind: "text", or "yes" where only a yes lets a person sign off.
    """

    key: str
    section: str
    question: str
    kind: Literal["text", "yes"]


def _text(key: str, section: str, question: str) -> Question:
    return Question(key=key, section=section, question=question, kind="text")


def _yes(key: str, section: str, question: str) -> Question:
    return Question(key=key, section=section, question=question, kind="yes")


QUESTIONS = (
    _text("purpose", "Motivation", "For what purpose was this data set made, and what was missing before it?"),
    _text("creators", "Motivation", "Who made it, for whom, and who paid for it?"),
    _text("population", "Composition", "Whom and which scenes should it represent, and who is missing or rare?"),
    _text(
        "sensitive", "Composition", "Which sensitive facts of people does it show or state, and how are they protected?"
    ),
    _text("minors", "Composition", "Does it show children or other people who need protection, and on what ground?"),
    _text("sources", "Collection", "Where do the images and videos come from, who recorded them, when and where?"),
    _text("consent", "Collection", "How were the people shown told and asked, and how can they withdraw?"),
    _yes("rights", "Collection", "Were licences and terms of all sources read, and do they allow the intended use?"),
    _text("annotators", "Labels", "Who drew, corrected or judged labels, how were they chosen, instructed and paid?"),
    _yes("looked", "Labels", "Did a person look at a random sample of the kept masks and find them good enough?"),
    _yes("limits", "Labels", "Were the known limits that the data card lists read and accepted?"),
    _yes("bias", "Filter bias", "Was the data card's table of filter bias read, and is each flagged value explained?"),
    _text("uses", "Uses", "For which tasks is it fit?"),
    _text("not_for", "Uses", "For which tasks must it not be used?"),
    _text("impact", "Uses", "What harm could its use do, to whom, and what is done against it?"),
    _text("distribution", "Distribution and maintenance", "Who receives it, and under which terms?"),
    _text("maintenance", "Distribution and maintenance", "Who keeps it, and where do errors and withdrawals go?"),
    _yes(
        "retention", "Distribution and maintenance", "Are the dates of retention right, and will someone act on them?"
    ),
)
"""The questions in the order of the card; the checklist of a sign-off has the same keys."""


def check_answers(answers: Mapping[str, Any]) -> dict[str, str | bool]:
    """The answers that say something: texts without surrounding space, and yes or no.

    Raises:
        DataCardError: an unknown key, another type than the question's, or a text longer than MAX_ANSWER characters.
    """
    known = {question.key: question for question in QUESTIONS}
    checked: dict[str, str | bool] = {}
    for key, value in answers.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"the keys are {', '.join(known)}"
            raise DataCardError(f"no question has the key {key!r:.80}; {hint}")
        expected = str if known[key].kind == "text" else bool
        if not isinstance(value, expected):
            named = "a text" if expected is str else "true or false"
            raise DataCardError(f"the answer to {key!r} must be {named}, got {value!r:.80}")
        if isinstance(value, str) and len(value) > MAX_ANSWER:
            raise DataCardError(f"the answer to {key!r} must have at most {MAX_ANSWER} characters, has {len(value)}")
        if not isinstance(value, str) or value.strip():
            checked[key] = value.strip() if isinstance(value, str) else value
    return checked


def open_questions(answers: Mapping[str, Any]) -> tuple[Question, ...]:
    """The questions without an answer, and those that need a yes and have a no.

    Raises:
        DataCardError: see `check_answers`.
    """
    checked = check_answers(answers)
    return tuple(question for question in QUESTIONS if not checked.get(question.key))


def read_answers(path: Path) -> dict[str, str | bool]:
    """The answers of a TOML file: keys of QUESTIONS, each with a text, or true or false.

    Raises:
        DataCardError: no such file, no TOML, or see `check_answers`; names the file.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_ANSWERS_BYTES + 1)
        if len(data) > MAX_ANSWERS_BYTES:
            raise DataCardError(f"it must have at most {MAX_ANSWERS_BYTES} bytes")
        return check_answers(tomllib.loads(data.decode()))
    except OSError as error:
        told = f"{path} cannot be read: {error.strerror or error}; name a TOML file with answers"
        raise DataCardError(told) from error
    except ValueError as error:
        raise DataCardError(f"{path}: {error}") from error


def datacard(folder: Path, answers: Mapping[str, Any], *, interval: Interval, now: datetime | None = None) -> str:
    """The data card of a release as Markdown; equal input gives equal text.

    Args:
        folder: of the release.
        answers: by the keys of QUESTIONS; missing ones stay open.
        interval: of a share, for the table of bias.
        now: against which the expiry of a sign-off is held; None for the clock.

    Raises:
        DataCardError: see `check_answers`.
        ReleaseError: no release, or one that breaks a rule.
        ShardError: a table cannot be read, or is not the one that was committed.
    """
    checked = check_answers(answers)
    data = read_release_bytes(folder)
    card = _Card(release=parse_release(data), fingerprint=fingerprint(data), rows=tally(folder), answers=checked)
    still = open_questions(checked)
    parts = {
        "Motivation": (),
        "Composition": _composition(card),
        "Collection": _collection(card),
        "Labels": _labels(card),
        "Filter bias": _bias(card, interval),
        "Uses": (),
        "Distribution and maintenance": _maintenance(card, _signed(folder, now)),
    }
    lines = [
        f"# Data card: {escape(card.release.name)}",
        "",
        f"Release `{card.fingerprint}`, made by curate {escape(card.release.tool['version'])}.",
        f"Numbers are read from the release; **{len(still)} of {len(QUESTIONS)} questions are open.**",
    ]
    for title, body in parts.items():
        lines += ["", f"## {title}", "", *body]
        lines += [line for question in QUESTIONS if question.section == title for line in _asked(question, checked)]
    return "\n".join(_tidy(lines)) + "\n"


def write_datacard(
    folder: Path,
    output: Path | None = None,
    *,
    answers: Mapping[str, Any],
    interval: Interval,
    now: datetime | None = None,
) -> Path:
    """Write the data card of the release in `folder` and return where; further errors as of `datacard`.

    Args:
        folder: of the release.
        output: the file; None for `<root>/reports/<name of the release folder>/datacard.md`.
        answers: by the keys of QUESTIONS.
        interval: of a share.
        now: against which the expiry of a sign-off is held.

    Raises:
        PlaceError: `output` is a folder, or would be another file of this or another release.
        PaperError: it cannot be written.
    """
    path = paper_path(folder, output, FILE)
    write_paper(path, datacard(folder, answers, interval=interval, now=now).encode())
    return path


@dataclass(frozen=True, kw_only=True, slots=True)
class _Card:
    """What the parts of a card are written from."""

    release: Release
    fingerprint: str
    rows: Tally
    answers: Answers


def _asked(question: Question, answers: Answers) -> Iterator[str]:
    answer = answers.get(question.key)
    if isinstance(answer, str):
        yield f"- [x] {question.question}"
        yield from (f"  > {escape(line)}" if line.strip() else "  >" for line in answer.splitlines())
    elif answer is None:
        yield f"- [ ] **Open:** {question.question} (`{question.key}`)"
    else:
        yield f"- [x] {question.question} **Yes.**" if answer else f"- [ ] **No:** {question.question}"


def _tidy(lines: Sequence[str]) -> Iterator[str]:
    """The lines with a list kept apart from what comes before it, and no two empty ones in a row."""
    before = ""
    for line in lines:
        if line.startswith("- [") and before and not before.startswith(("- [", "  >")):
            yield ""
        if line or before:
            yield line
        before = line


# Parts ----------------------------------------------------------------------------------------------------------------


def _composition(card: _Card) -> Iterator[str]:
    counts = card.release.counts
    yield "What became of everything that was read:"
    yield ""
    yield from _table(
        ("read", "undecodable", "duplicate", "not sampled", "dropped", "held", "kept"),
        [
            [
                getattr(counts, name)
                for name in ("read", "undecodable", "duplicate", "not_sampled", "dropped", "held", "kept")
            ]
        ],
    )
    yield ""
    yield "Rows with pixels, by folder (`hold` and `audit` are for review, not for training):"
    yield ""
    yield from _table(("folder", "rows"), [[split, card.release.splits.get(split, 0)] for split in MASK_SPLITS])
    yield ""
    yield "Attributes of the kept rows; where a value is not known it is unknown, never a default:"
    yield ""
    rows = []
    for name in card.rows.attributes:
        known, by = card.rows.values(name, "keep"), card.rows.provenance(name)
        unknown = known.pop(None, 0)
        said = ", ".join(f"{_cell(value)} {number}" for value, number in _most(known)) or "none"
        rows.append([_Raw(_cell(name)), _Raw(said), _share(unknown, card.rows.kept), *(by[p] for p in PROVENANCES[:3])])
    yield from _table(("attribute", "values", "unknown", "by people", "by models", "from the source"), rows)
    short = {name: cell for name, cell in card.release.cells.items() if cell["actual"] < cell["target"]}
    if short:
        yield ""
        yield f"{len(short)} of {len(card.release.cells)} quotas are not filled; those that lack most:"
        yield ""
        worst = sorted(short.items(), key=lambda item: (item[1]["actual"] - item[1]["target"], item[0]))[:10]
        yield from _table(("cell", "target", "actual"), [[name, c["target"], c["actual"]] for name, c in worst])


def _collection(card: _Card) -> Iterator[str]:
    rows = card.rows
    yield f"{rows.sources} sources gave the {rows.all} rows. Of these rows, licence and consent as the manifest states:"
    yield ""
    yield from _table(("licence", "rows"), _most(rows.licences))
    yield ""
    yield from _table(("consent", "rows"), _most(rows.consents))
    yield ""
    until = f"the earliest on {rows.retention_first.isoformat()}" if rows.retention_first else "none has a date"
    yield f"- Retention: {rows.retention_dated} of {rows.all} rows have a date until which they may be kept, {until}."
    yield f"- Rows that name a person's pseudonym: {rows.with_subjects}; different pseudonyms: {rows.subjects}."


def _labels(card: _Card) -> Iterator[str]:
    yield "Where the masks of the kept rows come from:"
    yield ""
    yield from _table(("label source", "rows"), [[s, card.rows.label_sources[s]] for s in LABEL_SOURCES])
    yield ""
    yield "Models that had a part:"
    yield ""
    models = [[m.role, m.id, _Raw(f"`{m.sha256[:12]}`"), m.source, m.licence] for m in card.release.models]
    yield from _table(("role", "model", "sha256", "from", "licence"), models)
    yield ""
    yield from _judged(card.rows.judge)


def _judged(judge: Mapping[str, Any]) -> Iterator[str]:
    if not judge:
        yield "- No judge looked at the labels."
        return
    audit = judge.get("audit") or {}
    calibrated = "calibrated by people" if judge.get("calibrated") else "not calibrated by people"
    yield f"- Judge: {judge.get('judged', 0)} labels judged by students of other folds; {calibrated}."
    if audit.get("used"):
        yield f"- Audit: {audit['used']} frames drawn at random and masked by people; {audit.get('bad', 0)} labels bad."
    gates = Counter(str(facts.get("gate")) for facts in (judge.get("clusters") or {}).values())
    if gates:
        yield "- Gates of the clusters: " + ", ".join(f"{escape(gate)} {number}" for gate, number in _most(gates)) + "."
    yield ""
    yield "Known limits, as the judge noted them:"
    yield ""
    notes = judge.get("notes") or ()
    yield from (f"* {escape(str(line))}" for line in notes)
    if not notes:
        yield "* The judge left no note; that is no sign that there are no limits."


def _bias(card: _Card, interval: Interval) -> Iterator[str]:
    """Share of the rows that were dropped or held, by value, against all others."""
    total, removed = card.rows.all, card.rows.all - card.rows.kept
    yield (
        f"Of {total} labelled rows {removed} were dropped or held ({_share(removed, total)}). A value is flagged where "
        f"the 95 % interval of its share leaves this out; below {FLOOR} rows nothing is claimed. Where a model said "
        "the value, its mistakes are in the table too."
    )
    yield ""
    rows = []
    for name in card.rows.attributes:
        kept, everything = card.rows.values(name, "keep"), card.rows.values(name)
        for value, number in _most(everything):
            gone = number - kept.get(value, 0)
            low, high = interval(gone, number)
            said = "too few" if number < FLOOR else "" if low <= removed / total <= high else "**flagged**"
            bounds = f"{100 * low:.1f}–{100 * high:.1f} %"
            rows.append([name, _named(value), number, gone, _share(gone, number), bounds, _Raw(said)])
    yield from _table(("attribute", "value", "rows", "removed", "share", "95 % interval", ""), rows)


def _maintenance(card: _Card, signed: str) -> Iterator[str]:
    release = card.release
    yield f"- Sign-off: {signed}"
    yield f"- Fingerprint: `{card.fingerprint}`; any changed byte is another one, without sign-off."
    yield "- Made from: " + (", ".join(f"`{p}`" for p in release.parents) or "no other release") + "."
    cause = release.inputs.get("successor")
    if isinstance(cause, dict):
        yield f"- Made by: {escape(str(cause.get('by')))}."
    yield f"- Run `{escape(release.run_id)}`, seed {release.seed}, config `{release.config_fingerprint[:12]}`."
    versions = [f"{escape(name)} {escape(version)}" for name, version in sorted(release.packages.items())]
    yield "- Packages: " + (", ".join(versions) or "not stated") + "."
    yield f"- Erasures applied: {len(release.erasures)}."


def _signed(folder: Path, now: datetime | None) -> str:
    try:
        signoff = signoff_of(folder, now=now)
    except ReviewLogError as error:
        return f"not known, for the review log is broken from event {error.seq} on."
    if signoff is None:
        return "none: nobody has signed this release off, or the sign-off was withdrawn or has expired."
    until = f", until {signoff.expires_at.isoformat()}" if signoff.expires_at else ""
    who = f"{escape(signoff.reviewer)} ({escape(signoff.how_known)})"
    return f"signed off by {who} on {signoff.at.date().isoformat()}{until}."


# Markdown -------------------------------------------------------------------------------------------------------------


class _Raw(str):
    """Text of a cell that is Markdown already."""

    __slots__ = ()


_SPECIAL = re.compile(
    r"([\\`*{}\[\]#!|~$^@]|(?<![^\W_])_|_(?![^\W_])|:(?=\S)|(?<=\bwww)\.|^[-+=]|^\d+[.)](?=\s|$))", re.IGNORECASE
)


def escape(text: str) -> str:
    """A text as Markdown on one line that shows just its characters: no link, picture, tag, table cell or list.

    Control characters, and those that turn the direction of writing, are shown by their numbers.
    """
    plain = clean(re.sub(r"\s+", " ", text), numbered=True)
    plain = plain.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _SPECIAL.sub(lambda found: found.group()[:-1] + "\\" + found.group()[-1], plain)


def _named(value: str | None) -> str:
    return "unknown" if value is None else value


def _cell(value: object, most: int = 80) -> str:
    if isinstance(value, _Raw):
        return value
    text = value.isoformat() if isinstance(value, date) else str(value)
    return escape(text if len(text) <= most else text[: most - 1] + "…")


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> Iterator[str]:
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    yield from ("| " + " | ".join(_cell(value) for value in row) + " |" for row in rows)


def _most(counts: Mapping[Any, int]) -> list[tuple[Any, int]]:
    """The largest first; equal ones by name."""
    return sorted(counts.items(), key=lambda item: (-item[1], "" if item[0] is None else str(item[0])))


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "–"
