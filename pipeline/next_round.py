"""``curate next-round``: what the judge of one round says the next should select, and what a person should label first.

::

    release: manifest/, dropped/, stats.json, config.json
        -> next.toml          the settings of the next selection: targets per class   see ``next_targets``
        -> label_first.csv    the labels whose drawing mends most                     see ``next_labels``

Only what was judged counts. Of a manifest only the columns that are needed are read, one row group at a time.
"""

from __future__ import annotations

import csv
import io
import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from rich.text import Text

from manifests.release import FileEntry, Release, ReleaseError, read_release
from manifests.schema import SchemaError, check_columns, check_schema, manifest_schema
from pipeline import storage
from pipeline.attributes import COMPUTED
from pipeline.config import Config, build, read_config
from pipeline.errors import InputError, UsageError
from pipeline.judge_summary import FORMAT
from pipeline.mask_attributes import MASK_ATTRIBUTES
from pipeline.next_labels import Candidates, LabelList, label_first
from pipeline.next_targets import ClassNeed, JudgedLabels, NextTargets, class_needs, next_targets, render_toml
from pipeline.released import one_release
from pipeline.stage import identity
from pipeline.verdicts import AUDIT_REASON, DRAWN_REASON, WRONG_REASON
from training.files import sha256_file

LIST_COLUMNS = (
    "rank",
    "sample_id",
    "source_uri",
    "frame_pts_us",
    "cluster",
    "verdict",
    "q",
    "disagreement",
    "gain",
    "reason",
)
_MOST_BYTES = 64 << 20
_READ = (
    "sample_id",
    "source_uri",
    "group_id",
    "frame_pts_us",
    "student_iou",
    "decision",
    "decision_reasons",
    "verdict",
)
_JUDGE = ("q", "cluster", "calibrated")
_REPEATED = ("source_uri", "group_id", "cluster", "verdict")
_LISTED = (*LIST_COLUMNS[1:6], "q", "distance", "calibrated")
_ATTR = "attr."
_SHOWN = 12
_CUTS = (10, 50, 100)
_FORMULA = ("=", "+", "-", "@")
_COLLAPSED = "the student has collapsed"
_DRAW = "draw a blind sample with curate audit"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class NextRound:
    """What the next round should do.

    Attributes:
        release: the folder that was read.
        judged: labels that the judge has looked at.
        audited: those of them whose mask a person has drawn for an audit.
        drawn: those whose mask a person has drawn from a list such as this.
        calibrated: whether an audit stands behind any of the judge's probabilities.
        reason: why nobody was judged, or empty.
        needs: of every class.
        targets: of the next selection.
        expected: labels mended if every label that nobody has drawn were.
        first: the labels to draw first.
        closed: cluster -> what can be done about its gate, where that is not passed.
        clusters: all that were judged.
        files: ``next.toml`` and ``label_first.csv``.
    """

    release: Path
    judged: int
    audited: int
    drawn: int
    calibrated: bool
    reason: str
    needs: Sequence[ClassNeed]
    targets: NextTargets
    expected: float
    first: LabelList
    closed: Mapping[str, str]
    clusters: int
    files: tuple[str, str]


def next_round(release: Path, output: str, *, labels: int = 100, config: Path | None = None) -> NextRound:
    """Reads a release and writes ``next.toml`` and ``label_first.csv``; equal releases give equal files.

    Args:
        release: a release, or the output of a run that holds one.
        output: where the two files go; neither is ever there in part.
        labels: length of the list.
        config: the settings whose targets are multiplied; without it, those of the release.

    Raises:
        UsageError: ``config`` is no config, or ``output`` lies in the release.
        InputError: there is no release, its judge's summary is of another format, or a file of it is damaged.
        StorageError: ``output`` cannot be written.
    """
    folder = one_release(release)
    if storage.is_local(output) and Path(output).resolve().is_relative_to(folder.resolve()):
        raise UsageError(f"--output {output} lies in the release, which is immutable; choose another folder")
    try:
        listing = read_release(folder)
    except ReleaseError as error:
        raise InputError(f"{folder}: {error}; 'curate verify {folder}' says what is broken") from error
    summary = _summary(folder, listing)
    settings = _settings(folder, listing, config)
    storage.check_writable(output)
    rows, names = _judged_rows(folder, listing)
    try:
        return _plan(folder, rows, names, summary, settings, labels, output)
    except ValueError as error:
        raise InputError(f"{folder}: {error}; 'curate verify {folder}' says whether it is damaged") from error


def _plan(
    folder: Path,
    rows: pa.Table,
    names: Sequence[str],
    summary: Mapping[str, Any],
    settings: Mapping[str, Any],
    labels: int,
    output: str,
) -> NextRound:
    judged = JudgedLabels(
        q=_floats(rows, "q"), lost=_bools(rows, "lost"), audited=_bools(rows, "audited"), bad=_bools(rows, "bad")
    )
    needs = class_needs(judged, {name: _coded(rows, _ATTR + name) for name in names})
    select = build(Config, settings, "the settings").select
    own = {*COMPUTED, *MASK_ATTRIBUTES}
    targets = next_targets(needs, select, [name for name in names if name not in own])
    drawn = _bools(rows, "drawn")
    open_rows = rows.filter(pa.array(~(judged.audited | drawn)))
    closed = _closed(_coded(rows, "cluster")[0], summary["clusters"])
    candidates = _candidates(open_rows)
    first = label_first(candidates, labels)
    files = storage.join(output, "label_first.csv"), storage.join(output, "next.toml")
    text = _toml(folder.name, settings, targets)
    storage.write_bytes(files[0], _csv(open_rows.take(pa.array(first.rows)), first).encode())
    storage.write_bytes(files[1], text.encode())
    return NextRound(
        release=folder,
        judged=rows.num_rows,
        audited=int(judged.audited.sum()),
        drawn=int(drawn.sum()),
        calibrated=bool(summary["calibrated"]),
        reason=str(summary.get("reason") or ""),
        needs=needs,
        targets=targets,
        expected=float((candidates.q * candidates.distance).sum()),
        first=first,
        closed=closed,
        clusters=len(summary["clusters"]),
        files=(files[1], files[0]),
    )


# ── reading ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _summary(folder: Path, listing: Release) -> Mapping[str, Any]:
    """The judge's summary of a release.

    Raises:
        InputError: there is none of the format that is read here.
    """
    judge = _document(folder, listing, "stats.json").get("judge")
    found = judge.get("format") if isinstance(judge, Mapping) else None
    if not isinstance(judge, Mapping) or found != FORMAT:
        told = "states no format" if found is None else f"has format {found!r}"
        raise InputError(
            f"{folder}: its judge's summary (stats.json) {told}, format {FORMAT} is read; publish again: repeat "
            "the 'curate run' that made it, finished stages are not redone"
        )
    if not isinstance(judge.get("clusters"), Mapping) or type(judge.get("calibrated")) is not bool:
        raise InputError(f"{folder}: its judge's summary (stats.json) lacks clusters or calibrated; publish again")
    return judge


def _settings(folder: Path, listing: Release, config: Path | None) -> dict[str, Any]:
    """The settings to start from, as a config file would have them; those of the release without their defaults."""
    if config is not None:
        read_config(config)  # says what is wrong with it
        return tomllib.loads(config.read_text("utf-8"))
    stated = _document(folder, listing, "config.json").get("config")
    if not isinstance(stated, Mapping):
        raise InputError(f"{folder}: config.json holds no settings; give --config FILE")
    settings = _without_defaults(stated, identity(Config()))
    try:
        build(Config, settings, "config.json")
    except UsageError as error:
        raise InputError(f"{folder}: {error}; its settings are another version's: give --config FILE") from error
    return settings


def _without_defaults(stated: Mapping[str, Any], default: Mapping[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for key, value in stated.items():
        usual = default.get(key)
        if isinstance(value, Mapping) and isinstance(usual, Mapping):
            below = _without_defaults(value, usual)
            kept |= {key: below} if below else {}
        elif value is not None and value != usual:
            kept[key] = value
    return kept


def _document(folder: Path, listing: Release, name: str) -> Mapping[str, Any]:
    entry = next((entry for entry in listing.files if entry.path == name), None)
    if entry is None or entry.bytes > _MOST_BYTES:
        raise InputError(f"{folder}: {name} is {'not listed' if entry is None else 'too large'}; publish again")
    path = _checked(folder, entry)
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no JSON: {error}") from error
    if not isinstance(value, Mapping):
        raise InputError(f"{path} must hold an object, got {type(value).__name__}")
    return value


def _checked(folder: Path, entry: FileEntry) -> Path:
    """The path of a file of the release, its bytes compared with what the release states."""
    path = folder / entry.path
    try:
        good = path.resolve().is_relative_to(folder.resolve()) and path.stat().st_size == entry.bytes
        good = good and sha256_file(path) == entry.sha256
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; copy the release again") from error
    if not good:
        raise InputError(f"{path} is not the file that was published; copy it again")
    return path


def _judged_rows(folder: Path, listing: Release) -> tuple[pa.Table, list[str]]:
    """The judged rows of ``manifest/`` and ``dropped/`` in the order of their sample ids, and the attributes' names.

    Columns: sample_id, source_uri, group_id, frame_pts_us, cluster, verdict, q, distance, calibrated, lost, audited,
    drawn, bad and ``attr.NAME``; those that repeat are dictionaries.
    """
    paths = [_checked(folder, entry) for entry in listing.files if entry.schema == "manifest"]
    names: list[str] = []
    parts: list[pa.Table] = []
    for path in paths:
        try:
            with pq.ParquetFile(path) as file:
                found = _attributes(file.schema_arrow)
                if names and names != found:
                    raise SchemaError(f"its attributes are {found}, those of the other files {names}")
                names = found
                parts += list(_parts(file, names))
        except (OSError, pa.ArrowException, SchemaError) as error:
            raise InputError(f"{path}: {error}; 'curate verify {folder}' lists all that is broken") from error
    if not parts:
        return _columns(manifest_schema(names or ["none"]).empty_table(), names), names
    table = pa.concat_tables(parts).unify_dictionaries().combine_chunks()
    del parts
    return table.take(pc.sort_indices(table.column("sample_id"))), names


def _attributes(schema: pa.Schema) -> list[str]:
    check_schema(schema, "manifest")
    index = schema.get_field_index("attr")
    if index < 0 or not pa.types.is_struct(schema.field(index).type):
        raise SchemaError("column 'attr' must be a struct of the attributes")
    names = [field.name for field in schema.field(index).type]
    full = manifest_schema(names)
    check_columns(schema, pa.schema([full.field(name) for name in (*_READ, "judge", "attr")]))
    return names


def _parts(file: pq.ParquetFile, names: Sequence[str]) -> Iterator[pa.Table]:
    wanted = [*_READ, *(f"judge.{name}" for name in _JUDGE), *(f"attr.{name}.value" for name in names)]
    for group in range(file.num_row_groups):
        yield _columns(file.read_row_group(group, columns=wanted, use_threads=False), names)


def _columns(table: pa.Table, names: Sequence[str]) -> pa.Table:
    table = table.filter(pc.is_valid(pc.struct_field(table.column("judge"), "q")))
    judge = {name: pc.struct_field(table.column("judge"), name) for name in _JUDGE}
    reasons = (AUDIT_REASON, DRAWN_REASON, WRONG_REASON)
    audited, drawn, bad = (_has(table.column("decision_reasons"), reason) for reason in reasons)
    columns: dict[str, Any] = {name: table.column(name) for name in ("sample_id", "frame_pts_us")}
    repeated = {name: judge[name] if name in judge else table.column(name) for name in _REPEATED}
    repeated |= {_ATTR + name: pc.struct_field(table.column("attr"), [name, "value"]) for name in names}
    columns |= {name: column.cast(pa.string()).dictionary_encode() for name, column in repeated.items()}
    columns |= {
        "q": judge["q"].cast(pa.float64()),
        "distance": pc.subtract(1.0, pc.fill_null(table.column("student_iou"), 1.0).cast(pa.float64())),
        "calibrated": pc.fill_null(judge["calibrated"], False),
        "lost": pc.not_equal(table.column("decision"), "keep"),
        "audited": audited,
        "drawn": drawn,
        "bad": pc.and_(audited, bad),
    }
    return pa.table(columns)


def _has(lists: pa.ChunkedArray, word: str) -> pa.Array:
    """(N,) bool: whether a list of words holds ``word``."""
    found = np.zeros(len(lists), np.bool_)
    whole = lists.combine_chunks()
    said = pc.fill_null(pc.equal(pc.list_flatten(whole), word), False).to_numpy(zero_copy_only=False)
    found[pc.list_parent_indices(whole).to_numpy()[said.astype(np.bool_)]] = True
    return pa.array(found)


def _floats(rows: pa.Table, name: str) -> NDArray[np.float64]:
    return np.asarray(rows.column(name).to_numpy(), np.float64)


def _bools(rows: pa.Table, name: str) -> NDArray[np.bool_]:
    return np.asarray(rows.column(name).to_numpy(), np.bool_)


def _coded(rows: pa.Table, name: str) -> tuple[list[str], NDArray[np.int64]]:
    """The values of a dictionary column, and (N,) the number of each row's; -1 where it is null."""
    column = rows.column(name).unify_dictionaries()
    values = column.chunk(0).dictionary.to_pylist() if column.num_chunks else []
    codes = [pc.fill_null(chunk.indices, -1).to_numpy(zero_copy_only=False) for chunk in column.chunks]
    return values, np.concatenate([np.zeros(0, np.int64), *codes]).astype(np.int64)


def _candidates(rows: pa.Table) -> Candidates:
    return Candidates(q=_floats(rows, "q"), distance=_floats(rows, "distance"), source=_coded(rows, "group_id")[1])


def _closed(judged: Sequence[str], clusters: Mapping[str, Any]) -> dict[str, str]:
    """Clusters whose gate is not passed -> what can be done about it.

    Raises:
        ValueError: a judged cluster is not in the judge's summary, or what it says of a gate is no gate.
    """
    if strange := sorted(set(judged) - set(clusters)):
        raise ValueError(f"cluster {strange[0]!r} has judged labels but is not in the judge's summary")
    closed = {}
    for name, said in clusters.items():
        outcome = said.get("gate") if isinstance(said, Mapping) else None
        if outcome not in ("passed", "failed", "uncertain"):
            raise ValueError(f"cluster {name!r}: gate must be passed, failed or uncertain, got {outcome!r}")
        if outcome != "passed":
            why = str(said.get("gate_reason") or "")
            closed[name] = f"{why}; no audit opens its gate" if why.startswith(_COLLAPSED) else _DRAW
    return closed


# ── writing ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _toml(release: str, settings: Mapping[str, Any], targets: NextTargets) -> str:
    """A complete config file.

    Raises:
        UsageError: the settings cannot be a config file any more.
    """
    section = dict(settings.get("select", {}))
    section.pop("targets", None)
    if targets.targets:
        section["targets"] = targets.targets
    whole = {**settings, "select": section} if section else dict(settings)
    said = [f"# Settings of the next selection, from what the judge said of the release {release}."]
    said += [f"# new: select.targets.{json.dumps(name, ensure_ascii=False)}" for name in targets.changed]
    said += [f"# {note}" for note in targets.notes]
    if not targets.changed:
        said.append("# No class differs enough from the whole to ask for more of it: no target is new.")
    text = "\n".join([*(" ".join(line.split()) for line in said), "", render_toml(whole)])
    build(Config, tomllib.loads(text), "next.toml")
    return text


def _csv(rows: pa.Table, first: LabelList) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(LIST_COLUMNS)
    strings = [rows.column(name).cast(pa.string()) if name in _REPEATED else rows.column(name) for name in _LISTED]
    listed = zip(*(column.to_pylist() for column in strings), first.gain.tolist(), strict=True)
    for i, (*told, q, distance, calibrated, gain) in enumerate(listed):
        numbers = [f"{value:.6f}" for value in (q, distance, gain)]
        writer.writerow([i + 1, *map(_plain, told), *numbers, _reason(q, calibrated)])
    return text.getvalue()


def _plain(cell: object) -> object:
    """A cell that a spreadsheet does not take for a formula."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell


def _reason(q: float, calibrated: bool) -> str:
    word = "probably wrong" if q >= 0.5 else "perhaps wrong" if q >= 0.1 else "probably right"
    return word if calibrated else f"{word}; uncalibrated"


def show(result: NextRound, console: Console) -> None:
    """Prints the classes with the largest need and what the first labels are expected to mend."""
    gates = f"gates not passed: {len(result.closed)} of {result.clusters}"
    drawn = f", {result.drawn} drawn from lists" if result.drawn else ""
    _print(console, f"{result.judged} labels judged, {result.audited} audited{drawn}; {gates}")
    if not result.judged:
        _print(console, f"nothing was judged{': ' + result.reason if result.reason else ''}; so nothing is asked for")
    if result.needs:
        console.print(_need_table(result))
    for note in result.targets.notes:
        _print(console, note)
    if len(result.first.rows):
        console.print(_gain_table(result))
        if not result.calibrated:
            _print(console, "uncalibrated: no audit stands behind these numbers; their order says more than their size")
    for name, remedy in result.closed.items():
        _print(console, f"cluster {name}: {remedy}")
    changed = ", ".join(result.targets.changed) or "none"
    _print(console, f"{result.files[0]}: new targets: {changed}; select with 'curate run --config {result.files[0]}'")
    _print(console, f"{result.files[1]}: {len(result.first.rows)} labels to draw first")


def _need_table(result: NextRound) -> Table:
    table = Table(title="classes with the largest need", title_justify="left")
    for name in ("attribute", "class", "labels", "audited", "noise", "lost", "weight", "target"):
        table.add_column(name, justify="left" if name in ("attribute", "class") else "right")
    for need in sorted(result.needs, key=lambda n: (-n.weight, n.attribute, n.name))[:_SHOWN]:
        target = result.targets.targets.get(need.attribute) if need.attribute in result.targets.changed else None
        wanted = f"{target[need.name]:.3g}" if isinstance(target, Mapping) else "–"
        counts = str(need.labels), str(need.audited)
        shares = f"{need.noise:.3f}", f"{need.lost:.3f}", f"{need.weight:.2f}"
        table.add_row(Text(need.attribute), Text(need.name), *counts, *shares, wanted)
    return table


def _gain_table(result: NextRound) -> Table:
    mark = "" if result.calibrated else " (uncalibrated)"
    table = Table(title=f"expected gain, in labels mended{mark}", title_justify="left")
    for name in ("labels drawn", "mended", "of all expected errors"):
        table.add_column(name, justify="right")
    mended = np.cumsum(result.first.gain)
    many = len(mended)
    for cut in sorted({*(cut for cut in _CUTS if cut < many), many}):
        drawn = float(mended[cut - 1])
        share = f"{min(1.0, drawn / result.expected):.2%}" if result.expected else "–"
        table.add_row(f"first {cut}", f"{drawn:.2f}", share)
    return table


def _print(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False)
