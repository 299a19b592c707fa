"""The static report: what it shows, that nothing from outside becomes markup, and that an erasure can find it."""

import base64
import dataclasses
import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote_to_bytes

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from manifests.paper import PlaceError
from manifests.release import fingerprint, read_release_bytes
from manifests.report_index import ReportError, read_index
from manifests.shard import ShardError
from manifests.verify import verify_release
from review.catalog import Catalog
from review.log import Reviewer, ReviewLog
from review.query import STATES
from review.report import MAX_SAMPLES, PERSONAL_META, RELEASE_META, Report, write_report
from review.report_choice import RANDOM, choose, fill
from review.report_samples import SIDE
from tests.review import releases

AT = datetime(2026, 1, 2, 3, tzinfo=UTC)
HOSTILE = "</script></style><img src=x onerror=alert(1)>\" ' <!--"
ADA, BEN = Reviewer(name="Ada"), Reviewer(name=HOSTILE[:60].strip())


class Page(HTMLParser):
    """A page taken apart as a browser would."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.data = path.read_bytes()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.rules = ""
        self._in: list[str] = []
        self.feed(self.data.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {key: value or "" for key, value in attrs}))
        self._in.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self._in and self._in.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self._in[-1:] == ["style"]:
            self.rules += data
        else:
            self.texts.append(data)

    def of(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def meta(self, name: str) -> str:
        return next(one["content"] for one in self.of("meta") if one.get("name") == name)

    @property
    def policy(self) -> str:
        return next(one["content"] for one in self.of("meta") if one.get("http-equiv") == "Content-Security-Policy")

    @property
    def shown(self) -> list[str]:
        """Ids of the samples that have a figure."""
        return [one["id"][2:] for one in self.of("figure") if one.get("id", "").startswith("s-")]

    def images(self, marker: str) -> list[bytes]:
        return [decoded(one["src"]) for one in self.of("img") if one.get("class", "photo") == marker]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def decoded(uri: str) -> bytes:
    head, _, data = uri.partition(",")
    assert re.fullmatch(r"data:image/(jpeg|png);base64", head)
    return base64.b64decode(unquote_to_bytes(data))


def report(folder: Path, **arguments: object) -> tuple[Report, Page]:
    written = write_report(folder, at=AT, **arguments)  # type: ignore[arg-type]
    return written, Page(written.path)


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return releases.write(tmp_path_factory.mktemp("plain"), releases.figures(60))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release and its parent, whose every text from outside is markup, with events of the same kind."""
    root = tmp_path_factory.mktemp("hostile")
    plain = releases.figures(50)
    parent = fingerprint(read_release_bytes(releases.write(root, plain)))
    samples = [
        dataclasses.replace(
            sample,
            reasons=(HOSTILE,) if sample.reasons else (),
            attributes=dict.fromkeys(releases.ATTRIBUTES, HOSTILE),
            row={"licence": HOSTILE, "consent_status": HOSTILE, "source_uri": HOSTILE},
        )
        for sample in plain
    ]
    folder = releases.write(root, samples, parents=(parent,))
    log, ids = ReviewLog.open(folder), [sample.id for sample in samples]
    for who, verdict in ((ADA, "approve"), (BEN, "reject")):
        log.append("sample_decision", reviewer=who, at=AT, target={"ids": ids[:2]}, verdict=verdict, reasons=[HOSTILE])
    drawn = {"query": {}, "ids_sha256": log.freeze(ids[5:15]), "count": 10}
    task = {"kind": "audit", "size": 10, "seed": 1, "blind": True}
    log.append("task", reviewer=ADA, at=AT, target=drawn, task=task, title=HOSTILE)
    log.append("task_result", reviewer=ADA, at=AT, target={"ids": ids[5:6]}, task=2, verdict="defect", reasons=[])
    log.append("signoff", reviewer=BEN, at=AT, checklist={"purpose": HOSTILE}, conditions=HOSTILE, verdict="approved")
    return folder


@pytest.fixture(scope="module")
def page(release: Path) -> Page:
    return report(release)[1]


@pytest.fixture(scope="module")
def hostile_page(hostile: Path) -> Page:
    return report(hostile)[1]


# What it is -----------------------------------------------------------------------------------------------------------


def test_equal_inputs_on_one_day_give_equal_bytes(release: Path, page: Page, tmp_path: Path) -> None:
    again = write_report(release, tmp_path / "b.html", at=AT.replace(hour=23))
    assert again.path.read_bytes() == page.data
    assert "2026-01-02" in page.text


def test_the_page_names_release_and_samples_and_says_that_it_is_personal_data(release: Path, tmp_path: Path) -> None:
    written, page = report(release, output=tmp_path / "a.html")
    assert page.meta(RELEASE_META) == written.fingerprint == fingerprint(read_release_bytes(release))
    assert page.meta(PERSONAL_META) == "pictures and ids"
    assert "This page is personal data" in page.text
    assert len(page.shown) == written.samples == len(set(page.shown))
    assert set(page.shown) <= {sample.id for sample in releases.figures(60)}


def test_all_counts_of_the_release_are_on_the_page(release: Path, page: Page) -> None:
    counts = Catalog.open(release).release.counts
    told = f"{counts.read} read = {counts.kept} kept + {counts.held} held + {counts.dropped} dropped"
    assert told in page.text
    assert "Nobody has signed this release off." in page.text


def test_a_report_changes_nothing_in_the_release(release: Path, tmp_path: Path) -> None:
    before = _tree(release)
    write_report(release, tmp_path / "a.html", at=AT)
    assert _tree(release) == before
    assert verify_release(release) == []


def _tree(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# The policy, and what comes from outside ------------------------------------------------------------------------------


def test_the_policy_admits_the_one_style_sheet_by_its_hash_and_no_script(hostile_page: Page) -> None:
    page = hostile_page
    digest = base64.b64encode(hashlib.sha256(page.rules.encode()).digest()).decode()
    wanted = {"default-src 'none'", f"style-src 'sha256-{digest}'", "img-src data:"}
    assert wanted <= set(page.policy.split("; "))
    assert "unsafe" not in page.policy
    assert "script" not in {name for name, _ in page.tags}
    assert len(page.of("style")) == 1
    assert not [attributes for _, attributes in page.tags if "style" in attributes]


def test_nothing_from_outside_becomes_markup(hostile_page: Page) -> None:
    page = hostile_page
    attributes = {key for _, found in page.tags for key in found}
    assert not [key for key in attributes if key.startswith("on")]
    assert {one["src"][:11] for one in page.of("img")} == {"data:image/"}
    assert b"<img src=x" not in page.data
    assert b"</script" not in page.data
    for shown in ("onerror=alert(1)", "</style>"):
        assert shown in page.text
    used = {one.get(key, "") for one in page.of("a") for key in ("href", "src")} - {""}
    assert all(link.startswith("#") for link in used)


def test_every_link_leads_to_a_part_of_the_page(hostile_page: Page) -> None:
    page = hostile_page
    ids = Counter(found["id"] for _, found in page.tags if "id" in found)
    assert max(ids.values()) == 1
    links = [one["href"][1:] for one in page.of("a")]
    assert set(links) <= set(ids)
    assert {"overview", "checks", "coverage", "bias", "quality", "clusters", "rights", "comparison", "decisions"} < set(
        links
    )


def test_a_name_of_any_length_is_cut(tmp_path: Path) -> None:
    samples = [dataclasses.replace(one, attributes={"lighting_level": "x" * 300_000}) for one in releases.figures(8)]
    _, page = report(releases.write(tmp_path, samples), images=False)
    assert len(page.data) < 200_000


# Decisions and comparison ---------------------------------------------------------------------------------------------


def test_decisions_tasks_and_sign_off_are_told(hostile: Path, hostile_page: Page) -> None:
    ids = sorted(sample.id for sample in releases.figures(50)[:2])
    told = hostile_page.text
    assert "5 events in the log" in told
    assert "Disputed: " + ", ".join(ids) in told.replace(" ,", ",")
    assert ReviewLog.open(hostile).head().sha256 in told
    assert "1 of 10" in told
    assert "signed" in told
    assert "Nobody has signed" not in told


def test_an_expired_sign_off_is_none(tmp_path: Path) -> None:
    folder = releases.write(tmp_path, releases.figures(12))
    log = ReviewLog.open(folder)
    log.append("signoff", reviewer=ADA, at=AT, verdict="approved", expires_at="2026-06-01T00:00:00Z")
    before = write_report(folder, at=AT)
    assert "Nobody has signed" not in before.path.read_text()
    after = write_report(folder, at=AT.replace(year=2027))
    assert "Nobody has signed this release off: that of event 0 expired" in after.path.read_text()


def test_the_parent_beside_the_release_is_compared(hostile_page: Page) -> None:
    assert "50 samples in both, 50 of them changed." in hostile_page.text


def test_a_parent_that_is_not_there_is_said(tmp_path: Path) -> None:
    folder = releases.write(tmp_path, releases.figures(10), parents=("ab" * 32,))
    _, page = report(folder, images=False)
    assert f"the release that this one was made from, {'ab' * 32}, is not beside it" in page.text


# Samples and their pictures -------------------------------------------------------------------------------------------


def test_a_report_without_images_holds_no_picture(release: Path, tmp_path: Path) -> None:
    written, page = report(release, output=tmp_path / "a.html", images=False)
    assert written.pictures == 0
    assert b"data:image" not in page.data
    assert not page.of("img")
    assert page.meta(PERSONAL_META) == "ids"
    assert written.samples == len(set(re.findall(r"\b[0-9a-f]{32}\b", page.text)))


def test_the_pictures_are_those_of_the_samples_with_their_masks(tmp_path: Path) -> None:
    samples = {sample.id: sample for sample in releases.figures(24)}
    _, page = report(releases.write(tmp_path, list(samples.values())))
    seen = list(_pictures(page))
    assert len(seen) == sum(sample.decision != "drop" or sample.audit for sample in samples.values())
    for name, photo, masks in seen:
        sample = samples[name]
        image = cv2.imdecode(np.frombuffer(photo, np.uint8), cv2.IMREAD_COLOR_RGB)
        assert image.shape == sample.image.shape  # they are smaller than a tile: shown as they are
        assert np.abs(image.astype(int) - sample.image).mean() < 12
        np.testing.assert_array_equal(masks["m"], sample.mask)
        assert ("t" in masks) == (sample.teacher_mask is not None)
        if sample.teacher_mask is not None:
            np.testing.assert_array_equal(masks["t"], sample.teacher_mask)


def _pictures(page: Page) -> Iterator[tuple[str, bytes, dict[str, NDArray[np.bool_]]]]:
    """(id, photograph, masks by class) of each figure."""
    figure = ""
    found: dict[str, list[tuple[str, bytes]]] = {}
    for name, attributes in page.tags:
        if name == "figure":
            figure = attributes.get("id", "")[2:]
        if name == "img":
            found.setdefault(figure, []).append((attributes.get("class", ""), decoded(attributes["src"])))
    for one, images in found.items():
        masks = {
            kind: cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE) > 0 for kind, data in images[1:]
        }
        yield one, images[0][1], masks


def test_pictures_are_reduced_and_keep_no_metadata(data: Path, tmp_path: Path) -> None:
    folder = releases.write(tmp_path, releases.photographs(data, 12))
    written, page = report(folder, samples=8)
    for _, photo, masks in _pictures(page):
        image = cv2.imdecode(np.frombuffer(photo, np.uint8), cv2.IMREAD_COLOR)
        assert max(image.shape[:2]) == SIDE
        assert masks["m"].shape == image.shape[:2]
        assert b"Exif" not in photo
    assert written.samples == 8


def test_300_photographs_with_masks_need_less_than_3_mb(data: Path, tmp_path: Path) -> None:
    photographs = releases.photographs(data, 300)
    samples = [dataclasses.replace(photographs[at % len(photographs)], number=at, audit=True) for at in range(300)]
    written = write_report(releases.write(tmp_path, samples), at=AT)
    assert written.samples == written.pictures == 300
    assert written.bytes < 3_000_000


def test_damaged_pixels_stop_the_report_and_are_named(tmp_path: Path) -> None:
    folder = releases.write(tmp_path, releases.figures(12))
    shard = next((folder / "shards" / "train").glob("*.parquet"))
    data = bytearray(shard.read_bytes())
    at = data.find(b"\xff\xd8\xff") + 200
    data[at] ^= 0xFF
    shard.write_bytes(data)
    with pytest.raises(ShardError, match=shard.name):
        write_report(folder, at=AT)
    assert not list((tmp_path / "reports").glob("*.html"))


# Which samples --------------------------------------------------------------------------------------------------------


@given(
    st.lists(st.lists(st.integers(0, 60), unique=True, max_size=40), min_size=6, max_size=6),
    st.integers(0, 50),
    st.sets(st.integers(0, 60), max_size=20),
)
def test_each_row_is_shown_once_and_as_many_as_asked_for(ranked: list[list[int]], count: int, drawn: set[int]) -> None:
    names = ("disputed", "doubted", "unsure", "held", "dropped", "corrected")
    drawn = set(sorted(drawn)[:count])
    taken = fill(dict(zip(names, ranked, strict=True)), count, sorted(drawn))
    shown = [row for rows in taken.values() for row in rows]
    assert len(shown) == len(set(shown))
    together = set(shown) | drawn
    assert len(together) == min(count, len(drawn | {row for rows in ranked for row in rows}))
    for name, rows in zip(names, ranked, strict=True):
        assert taken[name] == [row for row in rows if row in set(taken[name])]


def test_the_worst_of_each_kind_are_shown(tmp_path: Path) -> None:
    samples = releases.figures(250)
    catalog = Catalog.open(releases.write(tmp_path, samples))
    by_id = {sample.id: sample for sample in samples}
    choice = choose(catalog, 60, 0, None)
    groups = {group.key: [by_id[one["id"]] for one in group.samples] for group in choice.groups}
    assert len(choice.ids) == len(set(choice.ids)) == 60
    assert len(choice.random) == round(RANDOM * 60)
    assert {sample.decision for sample in groups["held"]} == {"hold"}
    assert {(sample.decision, sample.audit) for sample in groups["dropped"]} == {("drop", True)}
    assert all(sample.teacher_mask is not None for sample in groups["corrected"])
    assert {sample.decision for key in ("doubted", "unsure", "random") for sample in groups[key]} == {"keep"}
    assert all(sample.number % 10 == 8 for sample in groups["doubted"])  # q is 0.8
    assert all(sample.number % 10 == 0 for sample in groups["unsure"][:5])  # the least confidence
    assert {one.id for one in groups["random"]} <= choice.random


def test_the_draw_is_fair_and_another_seed_draws_others(tmp_path: Path) -> None:
    catalog = Catalog.open(releases.write(tmp_path, releases.figures(300)))
    one, two, again = (choose(catalog, 100, seed, None).random for seed in (0, 1, 0))
    assert one == again != two
    split = catalog.columns.words("split")
    kept = catalog.columns.words("decision").chosen(["keep"])
    whole = split.counts(kept)
    drawn = split.counts(np.array([catalog.row_of(name) for name in sorted(one)]))
    for name in ("train", "val", "test"):
        assert abs(drawn[name] - 40 * whole[name] / kept.sum()) < 1


def test_disputed_samples_come_first(tmp_path: Path) -> None:
    samples = releases.figures(40)
    catalog = Catalog.open(releases.write(tmp_path, samples))
    states = np.zeros(catalog.rows, np.int8)
    states[[3, 7]] = STATES.index("disputed")
    choice = choose(catalog, 20, 0, states)
    assert choice.groups[0].key == "disputed"
    assert {one["state"] for one in choice.groups[0].samples} == {"disputed"}
    assert len(choice.groups[0].samples) == 2
    assert choose(catalog, 20, 0, None).groups[0].key != "disputed"


@pytest.mark.parametrize("count", [0, 1, 5000])
def test_any_number_of_samples_can_be_asked_for(release: Path, tmp_path: Path, count: int) -> None:
    written, page = report(release, output=tmp_path / "a.html", samples=count)
    assert written.samples == min(
        count, 60 - sum(1 for s in releases.figures(60) if s.decision == "drop" and not s.audit)
    )
    assert (count > 0) == bool(page.shown)


def test_a_release_without_kept_rows_has_a_report(tmp_path: Path) -> None:
    samples = [dataclasses.replace(one, decision="drop", reasons=("bad",)) for one in releases.figures(8)]
    written, _ = report(releases.write(tmp_path, samples))
    assert written.samples == sum(sample.audit for sample in samples)


def test_rows_without_a_cluster_are_told(tmp_path: Path) -> None:
    plain = releases.figures(10)
    samples = [dataclasses.replace(one, row={"cluster_path": [] if one.number < 4 else [7]}) for one in plain]
    _, page = report(releases.write(tmp_path, samples), images=False)
    assert "Cluster Rows Kept Held Dropped Bad labels (90 %) Gate Splits" in page.text
    rows = page.text.partition("Gate Splits")[2].partition("Leakage")[0]
    assert {"none", "7"} <= set(rows.split())


# Where it lies --------------------------------------------------------------------------------------------------------


def test_a_report_is_listed_wherever_it_lies(tmp_path: Path) -> None:
    root = tmp_path / "root"
    folder = releases.write(root, releases.figures(12))
    places = [None, tmp_path / "elsewhere.html", root / "beside.html"]
    written = [write_report(folder, place, at=AT, images=place is None) for place in places]
    assert written[0].path == root / "reports" / f"{folder.name}.html"
    entries = {entry.file(root): entry for entry in read_index(root)}
    assert set(entries) == {one.path for one in written}
    assert {entry.fingerprint for entry in entries.values()} == {written[0].fingerprint}
    assert [entries[one.path].images for one in written] == [True, False, False]
    ids = "".join(f"{name}\n" for name in sorted(Page(written[0].path).shown))
    assert entries[written[0].path].samples_sha256 == hashlib.sha256(ids.encode()).hexdigest()
    write_report(folder, at=AT, images=False)
    assert [entry.images for entry in read_index(root)] == [False, False, False]


def test_a_moved_root_still_finds_its_reports(tmp_path: Path) -> None:
    folder = releases.write(tmp_path / "old", releases.figures(6))
    write_report(folder, tmp_path / "old" / "a.html", at=AT)
    (tmp_path / "old").rename(tmp_path / "new")
    (entry,) = read_index(tmp_path / "new")
    assert entry.file(tmp_path / "new").exists()


def test_nothing_is_written_among_the_releases(release: Path) -> None:
    for place in (release / "report.html", release.parent / "report.html"):
        with pytest.raises(PlaceError, match=r"lies (in the release|among the releases)"):
            write_report(release, place, at=AT)
    assert verify_release(release) == []


def test_a_report_that_cannot_be_listed_is_not_written(tmp_path: Path) -> None:
    folder = releases.write(tmp_path, releases.figures(6))
    (tmp_path / "reports").write_text("in the way")
    with pytest.raises(ReportError, match="must be listed there"):
        write_report(folder, tmp_path / "a.html", at=AT)
    assert not (tmp_path / "a.html").exists()


def test_a_damaged_index_is_not_overwritten(tmp_path: Path) -> None:
    folder = releases.write(tmp_path, releases.figures(6))
    (tmp_path / "reports").mkdir()
    index = tmp_path / "reports" / "index.json"
    for text in ("{", '{"format": 2, "reports": []}', '{"format": 1}', '{"format": 1, "reports": [{"path": 3}]}'):
        index.write_text(text)
        with pytest.raises(ReportError, match="is no list of reports"):
            write_report(folder, at=AT)
        assert index.read_text() == text


@pytest.mark.parametrize("wrong", [{"samples": -1}, {"samples": MAX_SAMPLES + 1}, {"seed": -1}])
def test_arguments_out_of_range_are_refused(release: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(ReportError, match="samples must be in"):
        write_report(release, at=AT, **wrong)  # type: ignore[arg-type]
