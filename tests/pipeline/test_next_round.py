"""Laws of ``curate next-round``: a release in, a config that runs and a list of labels out, whatever the order."""

import csv
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from manifests.release import FileEntry, sha256_hex
from manifests.schema import manifest_schema
from manifests.verify import verify_release
from pipeline.cli import main
from pipeline.config import Config, read_config
from pipeline.errors import InputError, UsageError
from pipeline.flags import parse
from pipeline.next_round import LIST_COLUMNS, next_round
from pipeline.quota import plan_quotas
from pipeline.release import write
from pipeline.select import cell_name
from pipeline.stage import identity
from tests.pipeline.test_publish import draw_published
from tests.pipeline.test_release import draw_run
from tests.students.releases import commit

CLASSES: Mapping[str, tuple[str | None, ...]] = {
    "lighting_level": ("dim", "normal", "bright", None),
    "place": ("home", "office", None),
    "subject_scale": ("small", "medium", "large", None),
}
GATES = ("passed", "uncertain", "failed")
SUMMARY: Mapping[str, Any] = {"format": 2, "calibrated": True, "reason": "", "method": "audit", "notes": []}
Said = pytest.CaptureFixture[str]


@dataclass(frozen=True, kw_only=True)
class Made:
    """Rows of a manifest with pixels nowhere, and what the judge says of them."""

    table: pa.Table
    judge: dict[str, Any]


def draw_rows(seed: int, count: int, clusters: int = 4, sources: int = 9, *, judged: float = 0.9) -> Made:
    """Judged rows: dim frames are often wrong and lost; a tenth is audited; ids have no order."""
    rng = np.random.default_rng(seed)
    schema = manifest_schema(list(CLASSES))
    picks = {name: rng.integers(0, len(values), count) for name, values in CLASSES.items()}
    dim = picks["lighting_level"] == 0
    seen, looked = rng.random(count) < 0.1, rng.random(count) < judged
    q = np.round(np.where(dim, rng.beta(4, 2, count), rng.beta(1, 12, count)), 3)
    bad = seen & (rng.random(count) < q)
    lost = np.where(seen | ~looked, 0, np.where(rng.random(count) < q / 2, rng.integers(1, 3, count), 0))
    cluster, source = rng.integers(0, clusters, count), rng.integers(0, sources, count)
    reasons = np.where(bad & looked, "both", np.where(seen & looked, "audited", "plain"))
    listed = {"both": ["audited", "teacher-wrong"], "audited": ["audited"], "plain": []}
    names = np.array([f"c{i}" for i in range(clusters)])[cluster]
    judge = {
        "q": pa.array(q, pa.float32(), mask=~looked),
        "cluster": pa.array(names.tolist(), pa.string()),
        "calibrated": pa.repeat(pa.scalar(True), count),
    }
    kind = schema.field("judge").type
    parts = [judge.get(field.name, pa.nulls(count, field.type)) for field in kind]
    known: dict[str, Any] = {
        "sample_id": [f"{n:032x}" for n in rng.permutation(count)],
        "source_uri": [f"/videos/{n}.mp4" for n in source],
        "group_id": [f"g{n}" for n in source],
        "frame_pts_us": pa.array(rng.integers(0, 1 << 40, count), pa.int64()),
        "attr": _attributes(schema.field("attr").type, picks),
        "student_iou": pa.array(np.round(1 - q * rng.random(count), 3), pa.float32()),
        "decision": np.array(["keep", "hold", "drop"])[lost].tolist(),
        "verdict": np.array(["keep", "hold", "drop"])[lost].tolist(),
        "decision_reasons": [listed[word] for word in reasons.tolist()],
        "judge": pa.StructArray.from_arrays(parts, fields=list(kind), mask=pa.array(~looked)),
    }
    columns = [_column(field, known.get(field.name), count) for field in schema]
    clusters_said = {}
    for number in range(clusters):
        mine = (cluster == number) & looked
        audited, wrong = int((mine & seen).sum()), int((mine & bad).sum())
        rate = float(q[mine].mean()) if mine.any() else 0.1
        said = {"labels": int(mine.sum()), "audited": audited, "bad": wrong, "noise": [round(rate, 4), 0.0, 1.0]}
        clusters_said[f"c{number}"] = {**said, "gate": GATES[number % 3], "fold": number % 2}
    return Made(table=pa.table(columns, schema=schema), judge={**SUMMARY, "clusters": clusters_said})


def _attributes(kind: pa.StructType, picks: Mapping[str, np.ndarray]) -> pa.StructArray:
    made = []
    for field in kind:
        values = pa.array(CLASSES[field.name], pa.string()).take(pa.array(picks[field.name]))
        rows = len(values)
        word = pa.repeat(pa.scalar("model"), rows)
        parts = [values, word, pa.nulls(rows, pa.float32()), pa.nulls(rows, pa.string())]
        made.append(pa.StructArray.from_arrays(parts, fields=list(field.type)))
    return pa.StructArray.from_arrays(made, fields=list(kind))


def _column(field: pa.Field, known: Any, rows: int) -> pa.Array:
    if known is not None:
        return known if isinstance(known, pa.Array) else pa.array(known, field.type)
    if field.nullable:
        return pa.nulls(rows, field.type)
    if pa.types.is_list(field.type):
        return pa.array([[]] * rows, field.type)
    zero = "" if field.type == pa.string() else b"\0" * 32 if field.type == pa.binary(32) else 0
    return pa.repeat(pa.scalar(zero, field.type), rows)


def write_rows(folder: Path, tables: Mapping[str, pa.Table], judge: Any, config: Any = None, group: int = 50) -> Path:
    """A release of tables by path, with the judge's summary in ``stats.json``; returns its folder."""
    said = {"config": identity(Config()) if config is None else config, "seed": 0}
    contents = {"stats.json": json.dumps({"judge": judge}), "config.json": json.dumps(said)}
    files = []
    folder.mkdir(parents=True)
    for name, text in contents.items():
        (folder / name).write_text(text)
        files.append(FileEntry(path=name, bytes=len(text.encode()), sha256=sha256_hex(text.encode())))
    for name, table in tables.items():
        (folder / name).parent.mkdir(exist_ok=True)
        pq.write_table(table, folder / name, row_group_size=group)
        data = (folder / name).read_bytes()
        ids = table.column("sample_id").to_pylist()
        ends = {"min_id": min(ids, default=None), "max_id": max(ids, default=None)}
        about = {"bytes": len(data), "sha256": sha256_hex(data), "rows": table.num_rows, "schema": "manifest"}
        files.append(FileEntry(path=name, **about, **ends))  # type: ignore[arg-type]
    commit(folder, files, {"train": sum(table.num_rows for table in tables.values())}, schema="manifest")
    return folder


def by_decision(table: pa.Table, files: int = 1) -> dict[str, pa.Table]:
    """The tables of a release: what was dropped apart, the rest in so many files."""
    gone = pa.array([decision == "drop" for decision in table.column("decision").to_pylist()], pa.bool_())
    kept = table.filter(pa.compute.invert(gone))
    cuts = np.linspace(0, kept.num_rows, files + 1).astype(int)
    parts = {f"manifest/{i:05}.parquet": kept.slice(a, b - a) for i, (a, b) in enumerate(itertools.pairwise(cuts))}
    return {**parts, "dropped/00000.parquet": table.filter(gone)}


def listed(folder: Path) -> list[dict[str, str]]:
    with (folder / "label_first.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def written(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def made() -> Made:
    return draw_rows(3, 900)


@pytest.fixture(scope="module")
def release(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("next") / "r", by_decision(made.table, 2), made.judge)


# What is written ------------------------------------------------------------------------------------------------------


def test_the_list_names_judged_labels_that_no_person_has_seen_best_first(
    release: Path, made: Made, tmp_path: Path
) -> None:
    next_round(release, str(tmp_path), labels=2000)
    rows = listed(tmp_path)
    source = {row["sample_id"]: row for row in made.table.to_pylist()}
    able = {
        name for name, row in source.items() if row["judge"] is not None and "audited" not in row["decision_reasons"]
    }
    assert {row["sample_id"] for row in rows} == able
    assert 0 < len(able) < made.table.num_rows
    assert tuple(rows[0]) == LIST_COLUMNS
    assert [row["rank"] for row in rows] == [str(i + 1) for i in range(len(rows))]
    gains = [float(row["gain"]) for row in rows]
    assert gains == sorted(gains, reverse=True)
    for row in rows:
        told = source[row["sample_id"]]
        assert (row["source_uri"], row["verdict"]) == (told["source_uri"], told["verdict"])
        assert (row["frame_pts_us"], row["cluster"]) == (str(told["frame_pts_us"]), told["judge"]["cluster"])
        assert float(row["q"]) == pytest.approx(told["judge"]["q"], abs=1e-6)
        assert float(row["disagreement"]) == pytest.approx(1 - told["student_iou"], abs=1e-6)
        assert float(row["gain"]) == pytest.approx(float(row["q"]) * float(row["disagreement"]), abs=2e-6)
    assert {row["verdict"] for row in rows} == {"keep", "hold", "drop"}


def test_the_targets_ask_for_more_of_what_was_wrong_and_the_planner_gives_it(release: Path, tmp_path: Path) -> None:
    result = next_round(release, str(tmp_path))
    select = read_config(tmp_path / "next.toml").select
    assert result.targets.changed == ("lighting_level",)
    table = select.targets["lighting_level"]
    assert isinstance(table, Mapping)
    assert table["dim"] > 1.5 > 1 > max(table["normal"], table["bright"])
    assert table["*"] == 1
    assert "unknown" not in table
    assert any("subject_scale" in note for note in result.targets.notes) == any(
        need.attribute == "subject_scale" and abs(need.weight - 1) > 0.1 for need in result.needs
    )
    counts = {cell_name((0, 0, 0), (value,)): 1000 for value in ("dim", "normal", "bright", None)}
    plan = plan_quotas(counts, 600, select, ["lighting_level"], {"lighting_level": ("dim", "normal", "bright")})
    quota = {value: plan.quotas[cell_name((0, 0, 0), (value,))] for value in ("dim", "normal", "bright")}
    assert quota["dim"] / quota["normal"] == pytest.approx(table["dim"] / table["normal"], rel=0.05)


def test_a_config_keeps_its_settings_and_its_targets_are_multiplied(release: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('[probe.scan]\nrate_hz = 3\n[select]\nrounds = 2\n[select.targets]\nsharpness = "proportional"\n')
    with file.open("a") as more:
        more.write("lighting_level = { dim = 2, '*' = 1 }\n")
    plain = next_round(release, str(tmp_path / "plain"))
    result = next_round(release, str(tmp_path / "out"), config=file)
    config, before = read_config(tmp_path / "out" / "next.toml"), read_config(file)
    assert replace(config, select=before.select) == before
    assert replace(config.select, targets={}) == replace(before.select, targets={})
    assert config.select.targets["sharpness"] == "proportional"
    once, twice = plain.targets.targets["lighting_level"], config.select.targets["lighting_level"]
    assert isinstance(once, Mapping)
    assert isinstance(twice, Mapping)
    assert twice["dim"] == pytest.approx(2 * once["dim"], rel=1e-3)
    assert twice["normal"] == once["normal"]
    assert set(result.targets.changed) >= {"lighting_level"}


def test_without_a_config_the_settings_of_the_release_are_kept(made: Made, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('[probe.scan]\nrate_hz = 3\n[select]\nattributes = ["lighting_level", "place"]\n')
    before = read_config(file)
    folder = write_rows(tmp_path / "r", by_decision(made.table), made.judge, identity(before))
    next_round(folder, str(tmp_path / "out"))
    after = read_config(tmp_path / "out" / "next.toml")
    assert replace(after, select=replace(after.select, targets={})) == before
    assert list(after.select.targets) == ["lighting_level"]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 9999), st.integers(1, 120), st.integers(1, 3), st.integers(1, 40))
def test_order_and_cut_of_the_rows_change_nothing(
    tmp_path_factory: pytest.TempPathFactory, seed: int, count: int, files: int, labels: int
) -> None:
    made, folder = draw_rows(seed, count), tmp_path_factory.mktemp("order")
    order = pa.array(np.random.default_rng(seed).permutation(count))
    one = write_rows(folder / "one" / "r", by_decision(made.table), made.judge)
    moved = by_decision(made.table.take(order), files)
    other = write_rows(folder / "other" / "r", moved, made.judge, group=7)
    for release, out in ((one, "a"), (other, "b")):
        next_round(release, str(folder / out), labels=labels)
    assert written(folder / "a") == written(folder / "b")
    assert set(written(folder / "a")) == {"label_first.csv", "next.toml"}


def test_a_repeated_call_writes_equal_bytes_over_what_is_there(release: Path, tmp_path: Path) -> None:
    next_round(release, str(tmp_path), labels=7)
    before = written(tmp_path)
    (tmp_path / "next.toml").write_text("half a fi")
    next_round(release, str(tmp_path), labels=7)
    assert written(tmp_path) == before
    assert len(listed(tmp_path)) == 7


# What there is nothing to say of --------------------------------------------------------------------------------------


def test_of_a_release_that_nobody_judged_nothing_is_asked(tmp_path: Path, capsys: Said) -> None:
    drawn = draw_rows(1, 40, judged=0.0)
    judge = {**SUMMARY, "calibrated": False, "reason": "one cluster only", "clusters": {}}
    folder = write_rows(tmp_path / "r", by_decision(drawn.table), judge)
    assert main(["next-round", str(folder), "--output", str(tmp_path / "out")]) == 0
    assert "nothing was judged: one cluster only; so nothing is asked for" in capsys.readouterr().out
    assert listed(tmp_path / "out") == []
    assert read_config(tmp_path / "out" / "next.toml") == Config()


def test_of_a_release_without_rows_nothing_is_asked(tmp_path: Path) -> None:
    drawn = draw_rows(1, 0)
    for name, tables in {"empty": by_decision(drawn.table), "none": {}}.items():
        folder = write_rows(tmp_path / name, tables, {**drawn.judge, "clusters": {}})
        result = next_round(folder, str(tmp_path / f"{name} out"))
        assert (result.judged, len(result.first.rows), result.needs) == (0, 0, [])


def test_where_no_attribute_is_known_no_target_is_new(tmp_path: Path) -> None:
    drawn = draw_rows(1, 60)
    kind = drawn.table.schema.field("attr").type
    unknown = _attributes(kind, {name: np.full(60, len(values) - 1) for name, values in CLASSES.items()})
    at = drawn.table.column_names.index("attr")
    table = drawn.table.set_column(at, drawn.table.schema.field("attr"), unknown)
    result = next_round(write_rows(tmp_path / "r", by_decision(table), drawn.judge), str(tmp_path / "out"))
    assert (result.needs, result.targets.changed) == ([], ())
    assert read_config(tmp_path / "out" / "next.toml") == Config()
    assert len(listed(tmp_path / "out")) > 0


# What is said ---------------------------------------------------------------------------------------------------------


def test_what_no_audit_stands_behind_is_marked(made: Made, tmp_path: Path, capsys: Said) -> None:
    at = made.table.column_names.index("judge")
    column = made.table.column("judge").combine_chunks()
    parts = [pa.array([False] * len(column)) if f.name == "calibrated" else column.field(f.name) for f in column.type]
    told = pa.StructArray.from_arrays(parts, fields=list(column.type), mask=column.is_null())
    plain = made.table.set_column(at, made.table.schema.field("judge"), told)
    for name, table, calibrated in (("with", made.table, True), ("without", plain, False)):
        folder = write_rows(tmp_path / name, by_decision(table), {**made.judge, "calibrated": calibrated})
        assert main(["next-round", str(folder), "--output", str(tmp_path / "out"), "--labels", "60"]) == 0
        said = capsys.readouterr().out
        assert ("uncalibrated" in said) != calibrated
        assert [row["reason"].endswith("; uncalibrated") for row in listed(tmp_path / "out")] == [not calibrated] * 60
        for line in ("first 10", "first 50", "first 60", "lighting_level", "dim"):
            assert line in said
        assert f"curate run --config {tmp_path / 'out' / 'next.toml'}" in said


def test_each_closed_gate_says_what_opens_it_and_that_of_a_collapsed_student_nothing(
    made: Made, tmp_path: Path, capsys: Said
) -> None:
    reason = "the student has collapsed: it sees nobody in 9 of 9 images with a label"
    clusters = {**made.judge["clusters"], "c2": {**made.judge["clusters"]["c2"], "gate_reason": reason}}
    folder = write_rows(tmp_path / "r", by_decision(made.table), {**made.judge, "clusters": clusters})
    assert main(["next-round", str(folder), "--output", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "gates not passed: 2 of 4" in said
    lines = [line for line in said.splitlines() if line.startswith("cluster c")]
    assert lines == [
        "cluster c1: draw a blind sample with curate audit",
        f"cluster c2: {reason}; no audit opens its gate",
    ]


def test_a_cell_that_a_spreadsheet_would_run_gets_an_apostrophe(made: Made, tmp_path: Path) -> None:
    at = made.table.column_names.index("source_uri")
    names = [f"{'=+-@'[i % 4]}x{i}" for i in range(made.table.num_rows)]
    table = made.table.set_column(at, made.table.schema.field("source_uri"), pa.array(names))
    folder = write_rows(tmp_path / "r", by_decision(table), made.judge)
    next_round(folder, str(tmp_path / "out"), labels=40)
    assert {row["source_uri"][:2] for row in listed(tmp_path / "out")} == {"'=", "'+", "'-", "'@"}


def test_a_real_release_goes_through_from_publishing_to_the_next_config(tmp_path: Path, capsys: Said) -> None:
    drawn = draw_published(tmp_path / "drawn")
    clusters = {str(path[0]) for path in drawn.drawn.chosen.column("cluster_path").to_pylist()}
    said = {"fold": 0, "gate": "uncertain", "audited": 0, "bad": 0, "noise": [0.3, 0.1, 0.6]}
    folds = [{"fold": 0, "student_sha256": "ab" * 32}]
    judge = {**SUMMARY, "calibrated": False, "folds": folds, "clusters": dict.fromkeys(sorted(clusters), said)}
    run = replace(draw_run(drawn, drawn.run("publish")), judge=judge)
    folder = Path(write(str(tmp_path / "out"), run, drawn.shards)[0])
    assert verify_release(folder) == []
    assert main(["next-round", str(tmp_path / "out"), "--output", str(tmp_path / "next"), "--labels", "5"]) == 0
    rows = listed(tmp_path / "next")
    judged = {name for name, q in _q_of(folder).items() if q is not None}
    assert len(rows) == 5
    assert {row["sample_id"] for row in rows} <= judged
    assert all(float(row["gain"]) == pytest.approx(0.25) for row in rows)  # q = .5, IoU = .5
    expected = read_config(None)
    found = read_config(tmp_path / "next" / "next.toml")
    assert replace(found, select=expected.select, publish=expected.publish, label=expected.label) == expected
    assert (found.publish, found.label) == (run.config.publish, run.config.label)
    assert f"{len(judged)} labels judged, 0 audited" in capsys.readouterr().out
    assert verify_release(folder) == []


def _q_of(folder: Path) -> dict[str, float | None]:
    tables = [pq.read_table(path) for kind in ("manifest", "dropped") for path in (folder / kind).glob("*.parquet")]
    rows = [row for table in tables for row in table.select(["sample_id", "judge"]).to_pylist()]
    return {row["sample_id"]: None if row["judge"] is None else row["judge"]["q"] for row in rows}


# What cannot be used --------------------------------------------------------------------------------------------------


def one_row(tmp_path: Path, judge: Any, config: Any = None) -> Path:
    return write_rows(tmp_path / "r", by_decision(draw_rows(1, 5).table), judge, config)


@pytest.mark.parametrize(
    ("judge", "message"),
    [
        (None, "states no format, format 2 is read; publish again"),
        ({"calibrated": False, "clusters": {}}, "states no format, format 2 is read; publish again"),
        ({"format": 3, "calibrated": False, "clusters": {}}, "has format 3, format 2 is read; publish again"),
        ({"format": 2, "calibrated": False}, "lacks clusters or calibrated; publish again"),
        ({**SUMMARY, "clusters": {}}, "is not in the judge's summary; 'curate verify"),
        ({**SUMMARY, "clusters": {f"c{i}": {"gate": "shut"} for i in range(4)}}, "must be passed, failed or uncertain"),
    ],
)
def test_a_release_without_the_judges_word_is_refused(judge: Any, message: str, tmp_path: Path, capsys: Said) -> None:
    folder = one_row(tmp_path, judge)
    assert main(["next-round", str(folder), "--output", str(tmp_path / "out")]) == 1
    assert message in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*"))


def _truncate(folder: Path) -> None:
    path = folder / "manifest/00000.parquet"
    path.write_bytes(path.read_bytes()[:-9])


def _flip(folder: Path) -> None:
    path = folder / "manifest/00000.parquet"
    data = bytearray(path.read_bytes())
    data[40] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_truncate, "manifest/00000.parquet is not the file that was published; copy it again"),
        (_flip, "manifest/00000.parquet is not the file that was published; copy it again"),
        (lambda folder: (folder / "stats.json").unlink(), "stats.json: No such file or directory"),
        (lambda folder: (folder / "release.json").write_text("{}"), "r: release: missing fields .*curate verify"),
        (lambda folder: (folder / "release.json").unlink(), "no release.json here"),
    ],
)
def test_a_damaged_release_is_refused_by_name(damage: Any, message: str, tmp_path: Path) -> None:
    folder = one_row(tmp_path, draw_rows(1, 5).judge)
    damage(folder)
    with pytest.raises(InputError, match=message):
        next_round(folder, str(tmp_path / "out"))


def test_a_table_that_is_no_manifest_is_refused(tmp_path: Path) -> None:
    drawn = draw_rows(1, 5)
    without = drawn.table.drop_columns(["verdict"])
    folder = write_rows(tmp_path / "r", {"manifest/00000.parquet": without}, drawn.judge)
    with pytest.raises(InputError, match="column 'verdict' is missing"):
        next_round(folder, str(tmp_path / "out"))


def test_settings_of_another_version_ask_for_a_config(tmp_path: Path) -> None:
    folder = one_row(tmp_path, draw_rows(1, 5).judge, {"label": {"rwos": 3}})
    with pytest.raises(InputError, match=r"unknown key 'rwos'.*give --config FILE"):
        next_round(folder, str(tmp_path / "out"))
    config = tmp_path / "mine.toml"
    config.write_text("")
    assert next_round(folder, str(tmp_path / "out"), config=config).judged > 0


def test_nothing_is_written_into_a_release(release: Path) -> None:
    with pytest.raises(UsageError, match="lies in the release, which is immutable"):
        next_round(release, str(release / "next"))


def test_a_config_that_is_none_is_refused(release: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        next_round(release, str(tmp_path), config=tmp_path / "absent.toml")


# The flags ------------------------------------------------------------------------------------------------------------


def test_the_flags_say_what_to_read_and_how_much_to_list() -> None:
    values = parse(["next-round", "r", "--output", "o"])
    assert (values.command, values.release, values.output) == ("next-round", Path("r"), "o")
    assert (values.labels, values.config) == (100, None)
    values = parse(["next-round", "r", "--output", "o", "--labels", "7", "--config", "c.toml"])
    assert (values.labels, values.config) == (7, Path("c.toml"))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["next-round", "--output", "o"], "the following arguments are required: RELEASE"),
        (["next-round", "r"], "the following arguments are required: --output"),
        (["next-round", "r", "--output", "o", "--labels", "0"], "must be a whole number >= 1, got '0'"),
        (["next-round", "r", "--output", "o", "--lables", "9"], "did you mean '--labels'?"),
        (["next-roud", "r"], "did you mean 'next-round'?"),
    ],
)
def test_wrong_flags_are_met_with_what_is_right(argv: Sequence[str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(argv)
    assert message in str(caught.value)
