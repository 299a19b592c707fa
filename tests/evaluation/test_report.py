"""The report: one page that needs nothing else, in which no name becomes markup and nothing is absent in silence."""

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation import page
from evaluation.audit import chosen_gaps, ends
from evaluation.estimates import Settings
from evaluation.fairness import Fairness
from evaluation.measures import Measure, finite, measure_of, p_text
from evaluation.page import tag
from evaluation.paired import Against
from evaluation.report import ReportTables, overall_rows, report, write_report
from evaluation.taxonomy import Category, Taxonomy, default_taxonomy
from evaluation.versus import compare
from manifests.text import clean
from tests.evaluation.synthetic import METRICS, Rows, as_videos, audit, frame_rows, large, picture, tables, video_row

HOSTILE = '"><script>alert(1)</script><img src="https://x.example/p.png" onerror=\'x\'>\u202e\x00\udcff&amp;'
VOID = {"meta", "img", "br", "col", "hr", "wbr"}


class _Page(HTMLParser):
    """Tags and attributes in order, texts, and whether every tag is closed where it should be."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.headers: list[str] = []
        self.charts: list[dict[str, str]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {key: value or "" for key, value in attrs}))
        if tag == "th":
            self.headers.append("")
        if tag == "svg" and "svg" not in self.open:
            self.charts.append(self.tags[-1][1])
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if "th" in self.open and "span" not in self.open:
            self.headers[-1] += data

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def named(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


def _small(count: int = 3, **more: Any) -> tuple[Rows, Rows]:
    rng = np.random.default_rng(0)
    every = [frame_rows(f"v{at}", 0.9 - at / 50, rng, 20, **more) for at in range(count)]
    return [row for rows in every for row in rows], [video_row(rows, f"s{at}") for at, rows in enumerate(every)]


def _is_alone(found: _Page) -> None:
    """No script, no event, and every address is inside the page or its data."""
    assert not {name for name, _ in found.tags} & {"script", "link", "iframe", "object", "embed", "base", "form"}
    assert found.open == []
    for _, attributes in found.tags:
        assert not [key for key in attributes if key.startswith("on") or key == "srcset"]
        for key in {"src", "href", "xlink:href", "action"} & set(attributes):
            assert attributes[key].startswith(("#", "data:image/jpeg;base64,"))
    assert "url(" not in found.text
    assert "@import" not in found.text
    assert found.named("meta")[1]["content"].startswith("default-src 'none'")


@pytest.fixture(scope="module")
def full() -> tuple[ReportTables, _Page, str]:
    taxonomy = default_taxonomy()
    frames, videos, attributes = large(taxonomy)
    other = [row | {metric: max(0.0, row[metric] - 0.01) for metric in METRICS} for row in videos]
    pair = (as_videos(videos, attributes), as_videos(other, attributes))
    given = tables(
        frames,
        videos,
        fairness=audit(videos, attributes, taxonomy),
        coverage={"apparent_skin_tone": {"light": 0.9, "medium": 0.1}, "only_trained": {"a": 0.5, "b": 0.5}},
        pictures={("clip_000", index): picture(index) for index in videos[0]["worst_frames"]},
        picture_legend=(("missed", (213, 94, 0)),),
        compare=Against(
            model={"id": "student-b"}, videos=other, changes=compare(*pair, taxonomy, Settings(missing="exclude"))
        ),
    )
    text = report(given)
    return given, _Page(text), text


def test_the_page_needs_nothing_but_itself(full: tuple[ReportTables, _Page, str]) -> None:
    _is_alone(full[1])


def test_every_class_category_and_video_appears(full: tuple[ReportTables, _Page, str]) -> None:
    given, found, _ = full
    assert given.fairness is not None
    assert len({row.category for row in given.fairness.rows if row.family == "classes"}) == 43
    rows = [row for row in given.fairness.rows if row.family == "classes"]
    assert {name for row in rows for name in (row.category, row.group)} <= set(found.headers)
    assert all(str(row["video"]) in found.text for row in given.videos)


def test_a_forest_panel_has_a_line_for_each_class(full: tuple[ReportTables, _Page, str]) -> None:
    given, found, _ = full
    assert given.fairness is not None
    panels = [a for name, a in found.tags if name == "section" and a.get("aria-label", "").startswith("IoU: ")]
    names = {row.category for row in given.fairness.rows if row.family != "overall"}
    assert {panel["aria-label"].removeprefix("IoU: ") for panel in panels} == names


def test_the_page_stays_below_five_megabytes(full: tuple[ReportTables, _Page, str]) -> None:
    assert len(full[2].encode()) < 5_000_000


def test_a_planted_gap_is_the_first_finding(full: tuple[ReportTables, _Page, str]) -> None:
    first = re.search(r"<li><strong>(.*?)</strong>(.*?)</li>", full[2])
    assert first is not None
    assert clean(re.sub("<.*?>", "", first[1])) == "apparent_skin_tone = light"
    assert "worse" in first[2]


def test_tables_have_headers_and_pictures_have_texts(full: tuple[ReportTables, _Page, str]) -> None:
    found = full[1]
    assert all(header.get("scope") for header in found.named("th"))
    assert found.named("img")
    assert all(image["alt"] for image in found.named("img"))
    assert len(found.charts) > 100
    assert all((a.get("role") == "img" and a.get("aria-label")) or a.get("aria-hidden") for a in found.charts)
    assert dict(found.tags)["html"]["lang"] == "en"


def test_links_lead_somewhere_and_ids_are_distinct(full: tuple[ReportTables, _Page, str]) -> None:
    ids = [a["id"] for _, a in full[1].tags if "id" in a]
    assert len(ids) == len(set(ids))
    assert {a["href"][1:] for a in full[1].named("a")} <= set(ids)


def test_coverage_names_what_was_never_evaluated_or_trained(full: tuple[ReportTables, _Page, str]) -> None:
    coverage = full[2][full[2].index('id="coverage"') :]
    assert "not in training" in coverage
    assert "only_<wbr>trained" in coverage


def test_equal_tables_give_equal_bytes(tmp_path: Path) -> None:
    taxonomy = Taxonomy(categories=default_taxonomy().categories[:3])
    paths = []
    for part in ("a", "b"):
        frames, videos, attributes = large(taxonomy, count=40, people=40, frames=12)
        given = tables(frames, videos, fairness=audit(videos, attributes, taxonomy, intersections=()))
        paths.append(write_report(tmp_path / part / "deep", given))
    assert paths[0].name == "report.html"
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert [path.name for path in paths[0].parent.iterdir()] == ["report.html"]


def test_no_name_becomes_markup() -> None:
    taxonomy = Taxonomy(categories=(Category(name="tone", classes=(HOSTILE, "b")), Category(name="mood", open=True)))
    rng = np.random.default_rng(0)
    every = [frame_rows(f"{HOSTILE}{at}", 0.9, rng, 8) for at in range(12)]
    videos = [video_row(rows, f"{HOSTILE}{at}") for at, rows in enumerate(every)]
    attributes: dict[str, list[str | None]] = {
        "tone": [HOSTILE if at % 2 else "b" for at in range(12)],
        "mood": [f"{HOSTILE} x {at % 3}" for at in range(12)],
    }
    given = tables(
        [row for rows in every for row in rows],
        videos,
        fairness=audit(videos, attributes, taxonomy, intersections=(("tone", "mood"),)),
        coverage={HOSTILE: {HOSTILE: 1.0}},
        pictures={(str(videos[0]["video"]), 0): picture()},
        picture_legend=((HOSTILE, (1, 2, 3)),),
        settings={HOSTILE: [HOSTILE, {HOSTILE: None}]},
        model={"id": HOSTILE, "sha256": HOSTILE},
    )
    found = _Page(report(given))
    _is_alone(found)
    shown = clean(HOSTILE)
    assert found.text.count(shown) > 50
    assert f"{shown} x 2" in found.text
    report(given).encode("utf-8")
    assert "\u202e" not in found.text


@given(st.text(), st.text())
def test_text_and_attributes_come_back_as_they_went_in(text: str, value: str) -> None:
    found = _Page(tag("p", text, title=value))
    assert found.tags == [("p", {"title": clean(value)})]
    assert found.text == clean(text)


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"labelled": False}, "no video has labels"),
        ({"flow": False}, "no optical flow was computed"),
        ({}, "no attributes of the videos were given"),
        ({}, "no second model was given"),
        ({}, "classes of the training data were not given"),
        ({}, "Pictures of the worst frames: none were given"),
        ({"count": 1}, "one video only"),
        ({"count": 1}, "1 subject: too few for an interval"),
    ],
)
def test_what_is_absent_is_stated_with_its_reason(more: dict[str, Any], reason: str) -> None:
    assert reason in _Page(report(tables(*_small(**more)))).text


def test_attributes_that_are_not_given_are_named() -> None:
    frames, videos = _small(12)
    attributes: dict[str, list[str | None]] = {"lighting_level": ["dim", None] * 6}
    text = _Page(report(tables(frames, videos, fairness=audit(videos, attributes, default_taxonomy())))).text
    assert "the videos lack 46 attributes: apparent_skin_tone" in text
    assert "No class has 30 subjects inside and outside of it" in text


def test_videos_without_a_score_are_counted_by_metric() -> None:
    frames, videos = _small(12)
    videos[3]["iou"] = None
    fairness = audit(videos, {"lighting_level": ["dim", "bright"] * 6}, default_taxonomy())
    assert "IoU: 1 video without a score: v3" in _Page(report(tables(frames, videos, fairness=fairness))).text


def test_an_audit_without_attributes_says_so() -> None:
    frames, videos = _small(12)
    fairness = audit(videos, {}, Taxonomy(categories=()), intersections=())
    assert "the videos have no attribute" in _Page(report(tables(frames, videos, fairness=fairness))).text


def test_a_video_without_frames_or_scores_says_so() -> None:
    frames, videos = _small(2)
    bare = {"video": "bare", "worst_frames": None}
    text = _Page(report(tables(frames, [*videos, bare]))).text
    assert "no frame of this video has a score" in text
    assert "1 of 3 videos have no labels" in text


def test_headline_means_are_those_of_the_videos() -> None:
    frames, videos = _small(12)
    rows = overall_rows(tables(frames, videos))
    for key in ("iou", "boundary_iou", "adjacent", "adjacent_excess", "dtssd", "adjacent_truth"):
        assert rows[key].mean == pytest.approx(np.mean([row[key] for row in videos]), abs=1e-12)
        assert rows[key].interval is not None
    assert rows["lag_loss"].mean == pytest.approx(0.02)


def test_the_interval_of_the_headline_is_that_of_the_audit() -> None:
    frames, videos = _small(12)
    attributes: dict[str, list[str | None]] = {"lighting_level": ["dim", "bright"] * 6}
    fairness: Fairness = audit(videos, attributes, default_taxonomy())
    alone = overall_rows(tables(frames, videos))
    for key, row in overall_rows(tables(frames, videos, fairness=fairness)).items():
        assert row.interval == alone[key].interval


def test_a_lateness_that_is_not_known_is_not_written() -> None:
    frames, videos = _small(2)
    unknown = [row | {"lag_loss": [None] * 5} for row in videos]
    assert "held back" not in _Page(report(tables(frames, unknown))).text


def test_without_an_audit_the_settings_of_the_comparison_hold() -> None:
    frames, videos = _small(12)
    settings = Settings(confidence=0.8, seed=3)
    found = overall_rows(tables(frames, videos, comparison=settings))["iou"]
    fairness = audit(videos, {}, Taxonomy(categories=()), intersections=(), confidence=0.8, seed=3)
    assert found.interval == next(row.interval for row in fairness.rows if row.metric == "iou")
    assert "80 % interval" in _Page(report(tables(frames, videos, comparison=settings))).text


def test_a_mask_that_does_all_the_truth_does_not_is_within_the_range_of_dtssd() -> None:
    frames, videos = _small(2)
    worst = [row | {"dtssd": 200.0} for row in videos]
    assert overall_rows(tables(frames, worst))["dtssd"].mean == 200


def test_lateness_is_read_from_losses_or_from_iou() -> None:
    frames, videos = _small(1)
    losses = [videos[0] | {"lag_loss": (0.1, 0.2)}, videos[0] | {"lag_loss": None, "lag_iou": (0.9, 0.8)}]
    shown = [_Page(report(tables(frames, [row]))).text for row in losses]
    assert all("1 frame 10.0, 2 frames 20.0" in text for text in shown)


def test_settings_are_all_in_the_footer(full: tuple[ReportTables, _Page, str]) -> None:
    footer = _Page(full[2][full[2].index("<footer>") : full[2].index("</footer>")]).text
    for part in ("model.sha256", "ab" * 32, "second model.id", "measure.ratio", "0.02", "a, b", "fairness.replicates"):
        assert part in footer
    assert "1999" in footer


def test_the_worst_class_of_an_error_is_the_one_with_the_most() -> None:
    taxonomy = Taxonomy(categories=(Category(name="tone", classes=("a", "b")),))
    _, videos = _small(24)
    for at, row in enumerate(videos):
        row["dtssd"] = 1.0 + at % 2 + at / 100
    attributes: dict[str, list[str | None]] = {"tone": ["a", "b"] * 12}
    (gap,) = chosen_gaps(audit(videos, attributes, taxonomy, intersections=()), "dtssd")
    assert ends(gap) == ("b", "a")


def test_large_classes_are_preferred_for_the_worst_gap() -> None:
    taxonomy = Taxonomy(categories=(Category(name="tone", classes=("a", "b", "c")),))
    frames, videos = _small(65)
    tones: list[str | None] = ["c" if at < 3 else "ab"[at % 2] for at in range(65)]
    (gap,) = chosen_gaps(audit(videos, {"tone": tones}, taxonomy, intersections=()), "iou")
    assert gap.at_least == 30
    assert gap.groups == 2
    assert frames


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"videos": []}, "at least one video"),
        ({"videos": [{"video": "v0"}, {"video": "v0"}]}, "distinct, got 'v0'"),
        ({"frames": [{"video": "v9", "index": 0}]}, "frames name video 'v9'"),
        ({"pictures": {("v0", 3): b"\x89PNG"}}, "picture of 'v0', frame 3, must be JPEG"),
    ],
)
def test_tables_that_contradict_themselves_are_refused(change: dict[str, Any], message: str) -> None:
    frames, videos = _small(1)
    with pytest.raises(ValueError, match=re.escape(message)):
        tables(**({"frames": frames, "videos": videos} | change))


def test_a_failed_write_leaves_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_report(tmp_path, tables(*_small(1)))
    before = path.read_bytes()

    def full_disk(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "replace", full_disk)
    with pytest.raises(OSError, match="no space"):
        write_report(tmp_path, tables(*_small(2)))
    assert path.read_bytes() == before
    assert [found.name for found in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.parametrize("theme", [0, 1])
@pytest.mark.parametrize("name", ["ink", "muted", "bad", "good", "s0"])
def test_text_has_contrast_in_both_themes(theme: int, name: str) -> None:
    blocks = re.findall(r":root\{[^}]*--bg[^}]*\}", page._STYLE)
    colours = dict(re.findall(r"--(\w+):(#[0-9a-f]+)", blocks[theme]))
    for ground in ("bg", "panel"):
        assert _contrast(colours[name], colours[ground]) >= 4.5, (name, ground)


def _contrast(a: str, b: str) -> float:
    low, high = sorted((_luminance(a), _luminance(b)))
    return (high + 0.05) / (low + 0.05)


def _luminance(colour: str) -> float:
    digits = colour[1:] if len(colour) == 7 else "".join(2 * c for c in colour[1:])
    parts = (int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4))
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def test_numbers_are_written_as_their_metric_wants() -> None:
    iou, error = measure_of("iou"), measure_of("dtssd")
    assert (iou.score(0.91234), iou.gap(-0.0421), iou.gap(0.02, signed=False)) == ("0.912", "−4.2", "2.0")
    assert (error.score(1.5), error.gap(0.5), error.gap_interval((-1.0, 1.0))) == ("1.50", "+0.50", "[−1.00, +1.00]")
    assert measure_of("adjacent_excess").score(-0.01) == "−0.010"
    assert (iou.score(None), iou.score(math.nan), iou.gap_interval(None)) == ("–", "–", "–")
    assert iou.gap(-0.00001) == "0.0"
    assert measure_of("own_metric") == Measure(key="own_metric", label="own_metric", better="neither")
    assert [p_text(p) for p in (None, 0.0004, 0.0421)] == ["–", "< 0.001", "0.042"]


@pytest.mark.parametrize("value", [None, math.nan, math.inf, "0.5", True, object()])
def test_what_is_no_number_is_missing(value: object) -> None:
    assert finite(value) is None
    assert finite(np.float32(0.5)) == 0.5


def test_plain_rows_from_json_are_enough() -> None:
    frames, videos = _small(2)
    again = json.loads(json.dumps([frames, videos]))
    assert report(tables(*again)) == report(tables(frames, videos))
