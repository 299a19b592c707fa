"""The selection report: one page that needs nothing else, the numbers of the plan in it, and no name as markup."""

import base64
import io
import itertools
import json
import re
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from manifests.text import clean
from pipeline.contact_sheets import contact_sheets
from pipeline.coverage import coverage
from pipeline.coverage_page import percent
from pipeline.selection_report import write_selection_report
from tests.pipeline.chains import Chain, rows_of, step
from tests.pipeline.selections import HOSTILE, halved, plan_of, recut, target_of

VOID = {"meta", "img", "br", "col", "hr", "wbr"}
FACTS = {"frames": 7, "first": {"clusters": 3, "set_aside": {"dead": 1}}, "second": {"clusters": 4}, HOSTILE: HOSTILE}


class _Page(HTMLParser):
    """Tags with their attributes, texts, and whether every tag is closed where it should be."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {key: value or "" for key, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def named(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


def _is_alone(found: _Page) -> None:
    """No script, no event, and every address is inside the page or its data; every anchor exists."""
    assert not {name for name, _ in found.tags} & {"script", "link", "iframe", "object", "embed", "base", "form"}
    assert found.open == []
    anchors = {attributes["id"] for _, attributes in found.tags if "id" in attributes}
    for _, attributes in found.tags:
        assert not [key for key in attributes if key.startswith("on") or key == "srcset"]
        assert "url(" not in attributes.get("style", "")
        for key in {"src", "href", "xlink:href", "action"} & set(attributes):
            assert attributes[key].startswith("data:image/jpeg;base64,") or attributes[key][1:] in anchors
    assert "@import" not in found.text
    assert found.named("meta")[1]["content"].startswith("default-src 'none'")


def _drawn(folder: Path, plan: Mapping[str, Any], *, side: int = 96, noise: bool = False) -> dict[str, Any]:
    """Stages that hold the frames of a plan, each with a picture of its own, and the rows it takes."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    chosen: list[dict[str, Any]] = []
    for cell, count in sorted(plan["counts"].items()):
        mine = [
            {
                "sample_id": f"{len(rows) + at:06d}",
                "source_uri": f"/in/{(len(rows) + at) % 23}{HOSTILE}.mp4",
                "key": int(rng.integers(1 << 63)),
                "cell": cell,
                "cluster_path": json.loads(cell)[:2],
                "vector": rng.standard_normal(4).astype(np.float16),
            }
            for at in range(count)
        ]
        chosen += mine[: plan["quotas"].get(cell, 0)]
        rows += mine
    pictures = [_jpeg(rng, side, noise=noise) for _ in range(8)]
    shown = [{"sample_id": row["sample_id"], "thumbnail": pictures[at % 8]} for at, row in enumerate(rows)]
    schema = pa.schema(
        [
            ("sample_id", pa.string()),
            ("source_uri", pa.string()),
            ("key", pa.uint64()),
            ("cell", pa.string()),
            ("cluster_path", pa.list_(pa.int32())),
            ("vector", pa.list_(pa.float16(), 4)),
        ]
    )
    shots = pa.schema([("sample_id", pa.string()), ("thumbnail", pa.binary())])
    return {
        "plan": plan,
        "assigned": step("assign", folder / "assign", [pa.Table.from_pylist(rows, schema)]),
        "embedded": step("embed", folder / "embed", [pa.Table.from_pylist(shown, shots)]),
        "chosen": pa.Table.from_pylist(chosen, schema),
    }


def _jpeg(rng: np.random.Generator, side: int, *, noise: bool) -> bytes:
    colour = rng.integers(256, size=(side, side, 3) if noise else (1, 1, 3))
    out = io.BytesIO()
    Image.fromarray(np.broadcast_to(colour, (side, side, 3)).astype(np.uint8)).save(out, "JPEG", quality=95)
    return out.getvalue()


def _written(folder: Path, **parts: Any) -> tuple[_Page, dict[str, Any], bytes]:
    folder.mkdir(exist_ok=True)
    names = write_selection_report(folder, **{"clusterfit": FACTS, "title": "A selection", "points": 60, **parts})
    assert names == ["selection.html", "selection.json"]
    data = (folder / "selection.html").read_bytes()
    found = _Page(data.decode())
    _is_alone(found)
    return found, json.loads((folder / "selection.json").read_bytes()), data


def _real(chain: Chain) -> dict[str, Any]:
    plan, chosen = halved(chain.assigned, chain.work.balanced)
    return {"plan": plan, "assigned": chain.assigned, "embedded": chain.embedded, "chosen": chosen}


def test_a_real_chain_makes_a_page_with_its_own_numbers(whole: Chain, tmp_path: Path) -> None:
    parts = _real(whole)
    found, numbers, _ = _written(tmp_path, **parts)
    rows = rows_of(whole.assigned)
    assert numbers["frames"]["candidates"] == rows.num_rows
    assert numbers["frames"]["chosen"] == parts["chosen"].num_rows
    assert f"{parts['chosen'].num_rows} of {rows.num_rows} frames were chosen" in found.text
    assert numbers["sources"]["candidates"] == len(set(rows.column("source_uri").to_pylist()))
    assert sum(one["chosen"] for one in numbers["sources"]["top"]) == parts["chosen"].num_rows
    assert [m["margin"] for m in numbers["margins"]] == [
        "group", "cluster", "lighting_level", "sharpness", "lighting_level × sharpness",
    ]  # fmt: skip
    assert len(found.named("img")) == sum(len(sheet["shown"]) for sheet in numbers["sheets"]) > 0
    assert len(numbers["map"]["sample_id"]) == min(60, rows.num_rows)


def test_the_cut_of_the_shards_changes_no_byte(whole: Chain, tmp_path: Path) -> None:
    parts = _real(whole)
    other = {
        "assigned": recut(whole.assigned, tmp_path / "a", [0, 9]),
        "embedded": recut(whole.embedded, tmp_path / "e", [5]),
    }
    pages = []
    for name, stages in (("one", parts), ("again", parts), ("other", parts | other)):
        _written(tmp_path / name, **stages)
        pages.append([(tmp_path / name / file).read_bytes() for file in ("selection.html", "selection.json")])
    assert pages[0] == pages[1] == pages[2]


def test_framed_pictures_are_the_chosen_frames(whole: Chain, tmp_path: Path) -> None:
    parts = _real(whole)
    found, numbers, _ = _written(tmp_path, **parts)
    taken = set(parts["chosen"].column("sample_id").to_pylist())
    for image in found.named("img"):
        assert ("outline" in image["style"]) == (image["title"] in taken) == ("not chosen" not in image["alt"])
    groups = {sheet["group"]: sheet for sheet in numbers["sheets"]}
    margin = numbers["margins"][0]
    for name, before, after in zip(margin["classes"], margin["before"], margin["after"], strict=True):
        assert (groups[int(name)]["candidates"], groups[int(name)]["chosen"]) == (before, after)


def test_pictures_are_those_of_their_frames(whole: Chain) -> None:
    _, chosen = halved(whole.assigned, [])
    sheets, groups = contact_sheets(whole.assigned, whole.embedded, chosen, sheets=2, shots=4)
    assert len(sheets) == min(2, groups)
    rows = rows_of(whole.embedded)
    stored = dict(zip(rows.column("sample_id").to_pylist(), rows.column("thumbnail").to_pylist(), strict=True))
    for shot in itertools.chain.from_iterable(sheet.shots for sheet in sheets):
        small = Image.open(io.BytesIO(shot.jpeg))
        whole_ = Image.open(io.BytesIO(stored[shot.id])).resize(small.size)
        assert max(small.size) <= 112
        assert np.abs(np.asarray(small, float) - np.asarray(whole_, float)).mean() < 12


def _hostile_plan() -> dict[str, Any]:
    cells = {
        (0, 0, HOSTILE, "b"): (30, 3),
        (0, 1, HOSTILE, HOSTILE): (20, 0),
        (1, 2, "a", HOSTILE): (25, 9),
        (1, 3, None, "b"): (12, 2),
        (-1, -1, "a", "b"): (2, 0),
    }
    wanted = {
        HOSTILE: lambda key: {HOSTILE: (50, 3), "a": (27, 9), "never": (0, 0)}[key],
        f"{HOSTILE} × 'two'": lambda key: {(HOSTILE, HOSTILE): (20, 0), ("a", "b"): (2, 0)}[key],
        "group": lambda key: {"0": (50, 3), "1": (37, 11)}[key],
    }
    targets = [
        target_of(HOSTILE, {HOSTILE: 8, "a": 3, "never": 3}, wanted[HOSTILE], kind=HOSTILE),
        target_of(f"{HOSTILE} × 'two'", {(HOSTILE, HOSTILE): 7, ("a", "b"): 7}, wanted[f"{HOSTILE} × 'two'"]),
        target_of("group", {"0": 7, "1": 7}, wanted["group"], kind="uniform"),
    ]
    return plan_of(cells, [HOSTILE, "'two'"], targets)


def test_no_name_becomes_markup(tmp_path: Path) -> None:
    parts = _drawn(tmp_path / "in", _hostile_plan())
    found, _, data = _written(tmp_path, **parts, title=HOSTILE)
    assert b"<script" not in data
    assert b"onerror='" not in data
    assert not re.search(rb"[\x00\xe2\x80\xae]{3}", data)
    assert len(found.named("img")) == len(re.findall(r"<img ", data.decode()))
    assert clean(HOSTILE) in found.text


def test_every_shortfall_is_told_with_its_reason_and_remedy(tmp_path: Path) -> None:
    found, numbers, _ = _written(tmp_path, **_drawn(tmp_path / "in", _hostile_plan()))
    assert [(s["wanted"], s["exists"], s["chosen"], s["missing"], s["reason"]) for s in numbers["shortfalls"]] == [
        (7, 20, 0, 7, "conflict"),
        (7, 2, 0, 7, "scarce"),
        (3, 0, 0, 3, "absent"),
        (8, 50, 3, 5, "conflict"),
        (7, 50, 3, 4, "conflict"),
    ]
    assert "3 wanted, 0 exist, 0 chosen. None exist: film or collect at least 3 such frames." in found.text
    assert "Too few exist: film or collect at least 5 more such frames." in found.text
    assert "group 0: 7 wanted, 50 exist, 3 chosen. Enough exist, but 4 more would cost other targets" in found.text
    assert {"href": "#group-0"} in found.named("a")


def test_a_selection_without_shortfall_says_so(tmp_path: Path) -> None:
    cells = {(0, 0, "a"): (9, 3), (0, 0, "b"): (9, 3)}
    target = target_of("x", {"a": 3, "b": 3}, lambda _: (9, 3), kind="uniform")
    found, numbers, _ = _written(tmp_path, **_drawn(tmp_path / "in", plan_of(cells, ["x"], [target])))
    assert "Every target was met." in found.text
    assert numbers["shortfalls"] == []
    assert numbers["margins"][2]["kl_to_target_nats"]["after"] == 0


@pytest.mark.parametrize(
    ("cells", "attributes"),
    [
        ({(0, 0): (40, 5)}, []),
        ({(0, 0): (1, 1)}, []),
        ({(0, 0): (5, 0), (1, 1): (5, 0)}, []),
        ({(-1, -1): (5, 0)}, []),
        ({}, []),
        ({(0, 0, None): (12, 3), (1, 4, None): (9, 2)}, ["nowhere"]),
        ({(at, at, f"c{at}"): (2, 1) for at in range(70)}, ["many"]),
        ({(0, at, *("ab"[(at >> i) % 2] for i in range(40))): (6, 2) for at in range(9)}, [f"a{i}" for i in range(40)]),
    ],
    ids=[
        "one cluster",
        "one frame",
        "none chosen",
        "dead",
        "nothing",
        "attribute absent",
        "70 groups",
        "40 attributes",
    ],
)
def test_any_shape_of_a_selection_makes_a_page(cells: Any, attributes: list[str], tmp_path: Path) -> None:
    found, numbers, data = _written(tmp_path, **_drawn(tmp_path / "in", plan_of(cells, attributes)), clusterfit={})
    assert len(numbers["margins"]) == 2 + len(attributes) * (len(attributes) + 1) // 2
    assert all(clean(name) in found.text for name in attributes)
    assert "No targets were given" in found.text
    assert len(data) < 4_000_000
    assert len(numbers["sheets"]) <= 24


def test_the_page_stays_below_four_megabytes_with_the_hardest_pictures(tmp_path: Path) -> None:
    cells = {(at, at, "ab"[at % 2]): (30, 12) for at in range(40)}
    parts = _drawn(tmp_path / "in", plan_of(cells, ["x"]), side=300, noise=True)
    found, _, data = _written(tmp_path, **parts)
    assert len(found.named("img")) == 24 * 12
    assert len(data) < 3_900_000  # the points of the map add 20 bytes each
    shot = base64.b64decode(found.named("img")[0]["src"].split(",")[1])
    assert max(Image.open(io.BytesIO(shot)).size) == 112


def test_colours_of_a_pair_follow_the_target(tmp_path: Path) -> None:
    cells = {
        (0, 0, a, b): (50, n) for (a, b), n in {("a", "c"): 1, ("a", "d"): 10, ("b", "c"): 25, ("b", "d"): 4}.items()
    }
    found, _, _ = _written(tmp_path, **_drawn(tmp_path / "in", plan_of(cells, ["x", "y"])))
    shades = [attributes.get("class") for name, attributes in found.tags if name == "td"]
    marked = [shade for shade in shades if shade in ("h2", "h4", "u2", "u4")]
    assert marked == ["h4", "u4", "h4"]


def test_a_choice_that_is_not_the_plan_s_is_refused(tmp_path: Path) -> None:
    parts = _drawn(tmp_path / "in", _hostile_plan())
    with pytest.raises(ValueError, match="the plan chooses 14 frames, the table has 13"):
        write_selection_report(tmp_path, **parts | {"chosen": parts["chosen"].slice(1)}, clusterfit={}, title="t")
    assert not (tmp_path / "selection.html").exists()


def test_the_numbers_of_the_page_are_those_of_the_file(tmp_path: Path) -> None:
    plan = _hostile_plan()
    found, numbers, _ = _written(tmp_path, **_drawn(tmp_path / "in", plan))
    for margin, told in zip(coverage(plan).margins, numbers["margins"], strict=True):
        f = margin.figures
        assert told["effective_classes"]["after"] == f.effective[1]
        assert f"{f.effective[0]:.2f} → {f.effective[1]:.2f}" in found.text
        assert f"{f.covered} of {f.existing}" in found.text
    assert numbers["clusterfit"] == FACTS


def test_facts_of_any_shape_are_kept_in_the_file(tmp_path: Path) -> None:
    parts = _drawn(tmp_path / "in", plan_of({(0, 0): (4, 2)}, []))
    facts = {"before": {"nmi": {"pose": 0.25}}, "after": {"nmi": {"pose": 0.5}}, "rounds": [1, {"loss": float("nan")}]}
    found, numbers, _ = _written(tmp_path, **parts, clusterfit=facts)
    assert "what the cluster step reported is in selection.json" in found.text
    assert numbers["clusterfit"] == {**facts, "rounds": [1, {"loss": None}]}


@given(st.integers(1, 10**6).flatmap(lambda whole: st.tuples(st.integers(0, whole), st.just(whole))))
def test_a_hundred_percent_is_written_only_where_nothing_is_missing(pair: tuple[int, int]) -> None:
    part, whole = pair
    text = percent(part / whole)
    assert (text == "100.0 %") == (part == whole)
    assert (text == "0.0 %") == (part == 0)
    if text[0] in "<>":
        assert part / whole < 0.001 if text[0] == "<" else part / whole > 0.999
    else:
        assert abs(float(text[:-2]) - 100 * part / whole) <= 0.05 + 1e-9


def test_at_most_twelve_pairs_stand_in_figures_and_all_in_the_file(tmp_path: Path) -> None:
    names = [f"a{i}" for i in range(8)]
    cells = {(0, at, *("ab"[(at >> i) % 2] for i in range(8))): (6, 2) for at in range(9)}
    found, numbers, _ = _written(tmp_path, **_drawn(tmp_path / "in", plan_of(cells, names)))
    figures = found.text[found.text.rindex("Every margin in figures") : found.text.rindex("Classes before and after")]
    assert figures.count(" × ") == 12
    assert "16 more pairs are in selection.json" in figures
    assert sum(margin["kind"] == "pair" for margin in numbers["margins"]) == 28


def test_two_rounds_are_told_with_the_frames_of_each(tmp_path: Path) -> None:
    first = plan_of({(0, 0, "a"): (40, 12), (1, 1, "b"): (20, 8)}, ["x"])
    parts = _drawn(tmp_path / "in", first)
    target = target_of("x", {"a": 2, "b": 6, "c": 2}, {"a": (12, 2), "b": (8, 3), "c": (0, 0)}.__getitem__)
    cells = {(0, 0, "a"): (12, 2), (1, 1, "b"): (8, 3)}
    rows = parts["chosen"].take(pa.array([0, 1, 12, 13, 14]))
    again = rows.append_column("first_row", pa.array([0, 1, 12, 13, 14], pa.int64()))
    found, numbers, _ = _written(tmp_path, **parts | {"plan": plan_of(cells, ["x"], [target]), "chosen": again})
    assert "60 candidates were left after thinning in time and removal of duplicates" in found.text
    assert "chosen in two rounds: 20 first" in found.text
    assert "5 of 20 frames were chosen" in found.text
    assert "before: the first choice" in found.text
    assert "before: all candidates" not in found.text
    assert "None exist there: raise select.oversample" in found.text
    assert (numbers["rounds"], numbers["pool"]["candidates"], numbers["frames"]["candidates"]) == (2, 60, 20)


def test_one_round_is_not_told_as_two(tmp_path: Path) -> None:
    found, numbers, _ = _written(tmp_path, **_drawn(tmp_path / "in", _hostile_plan()))
    assert "chosen in two rounds" not in found.text
    assert "first choice" not in found.text[: found.text.rindex("Definitions")]
    assert (numbers["rounds"], numbers["pool"]["candidates"]) == (1, 89)


def test_negative_sheets_are_refused(whole: Chain) -> None:
    with pytest.raises(ValueError, match="sheets and shots must be >= 0, got -1 and 12"):
        contact_sheets(whole.assigned, whole.embedded, rows_of(whole.assigned), sheets=-1)
