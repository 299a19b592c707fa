import dataclasses
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from evaluation.boundary import band, band_width, boundary
from manifests.release import read_release
from manifests.signoff import UnsignedError, check_signed
from tests.review import releases

pytest.importorskip("playwright.sync_api", reason="playwright is absent (pip install playwright)")

from playwright.sync_api import Browser

from review.catalog import Catalog
from review.log import ReviewLog
from review.server import running
from tests.review.browser import HOSTILE, Visit, flip_byte, launched, listed, mixed, need_chromium, visit

MASK, TEACHER, BAND = (230, 0, 150), (255, 140, 0), (0, 200, 255)
SCREENS = (
    "overview", "coverage", "bias", "bias?attribute=lighting_level", "quality", "quality?by=num_people", "grid", "held",
    "clusters", "clusters?path=1", "rights", "compare", "compare?kind=removed", "tasks", "signoff", "integrity",
)  # fmt: skip
PICTURED = ("grid", "held", "clusters?path=1", "compare")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    need_chromium()
    with launched() as found:
        yield found


def hostile(samples: list[releases.Sample]) -> list[releases.Sample]:
    """The samples, with markup where texts come from outside."""
    changes = {4: {"reasons": (HOSTILE,)}, 0: {"row": {"licence": HOSTILE, "source_uri": HOSTILE}}}
    return [dataclasses.replace(sample, **changes.get(sample.number, {})) for sample in samples]


def later(samples: list[releases.Sample]) -> list[releases.Sample]:
    """What the samples may become: one is removed, one dropped, one has another mask."""
    kept = [sample for sample in samples if sample.decision == "keep"]
    drop = dataclasses.replace(kept[1], decision="drop", reasons=("review: rough edge",), audit=True)
    redrawn = dataclasses.replace(kept[2], mask=np.roll(kept[2].mask, 4, 0), teacher_mask=kept[2].mask)
    other = {drop.number: drop, redrawn.number: redrawn}
    return [other.get(sample.number, sample) for sample in samples if sample.number != kept[3].number]


def pair(root: Path, samples: list[releases.Sample]) -> Path:
    """A release with one that was made before it; the later one's folder."""
    before = releases.write(root, samples)
    parent = Catalog.open(before).fingerprint
    return releases.write(root, later(samples), parents=(parent,))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pair(tmp_path_factory.mktemp("drawn"), hostile(releases.figures(40)))


@pytest.fixture(scope="module")
def looked_at(drawn: Path) -> Iterator[str]:
    """The address of a server whose release no test changes."""
    with running(drawn) as url:
        yield url


@pytest.fixture(scope="module")
def looker(browser: Browser, looked_at: str) -> Iterator[Visit]:
    with visit(browser, looked_at) as found:
        yield found.open()


@pytest.fixture
def looking(looker: Visit) -> Iterator[Visit]:
    """A page on the server whose release no test changes; it must end without a fault."""
    looker.page.evaluate("sessionStorage.removeItem('curate.look')")
    yield looker
    looker.clean()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return releases.write(tmp_path_factory.mktemp("plain"), releases.figures(24, seed=1))


@pytest.fixture
def own(plain: Path, tmp_path: Path) -> Path:
    """A release that a test may decide on and break."""
    copy = tmp_path / "root" / "releases" / plain.name
    shutil.copytree(plain, copy)
    return copy


def tenths(image: np.ndarray) -> np.ndarray:
    """Means over squares of ten pixels."""
    height, width, _ = image.shape
    return image.reshape(height // 10, 10, width // 10, 10, 3).mean((1, 3))


def walk_all(found: Visit, folder: Path, screens: Sequence[str]) -> None:
    corrected = listed(folder, verdict=["correct"])[0]
    for address in (*screens, f"sample?id={corrected}", f"sample?id={listed(folder, verdict=['hold'])[0]}"):
        found.go(address)
        assert found.page.get_attribute("main", "data-state") == "shown", address
        wider = found.page.evaluate("document.documentElement.scrollWidth - innerWidth")
        assert wider <= 0, f"{address} is {wider} pixels wider than the window"
        assert HOSTILE not in found.page.content(), address


def test_every_screen_stands_on_a_telephone(browser: Browser, looked_at: str, drawn: Path) -> None:
    with visit(browser, looked_at, viewport={"width": 390, "height": 844}) as found:
        found.open()
        walk_all(found, drawn, SCREENS)


def test_every_screen_with_pictures_stands_with_real_photographs(browser: Browser, data: Path, tmp_path: Path) -> None:
    folder = pair(tmp_path, releases.photographs(data, 20))
    with running(folder) as url, visit(browser, url, color_scheme="dark") as found:
        found.open()
        walk_all(found, folder, PICTURED)
        found.go("grid")
        tiles = found.page.locator(".tile")
        pixels = Catalog.open(folder).has_pixels()
        assert tiles.count() == len(pixels)
        assert found.page.locator("canvas[data-drawn=yes]").count() == pixels.sum()


def test_the_token_leaves_the_address_and_without_it_nothing_is_told(
    browser: Browser, looked_at: str, looking: Visit
) -> None:
    assert "token" not in looking.page.url
    with visit(browser, looked_at.split("#", maxsplit=1)[0]) as stranger:
        stranger.page.goto(stranger.url)
        stranger.page.wait_for_selector("main[data-state=failed]")
        assert "token" in stranger.text("main")
        assert "r-" not in stranger.text("body")


def test_what_a_tile_shows_is_the_mask_of_the_shard(looking: Visit) -> None:
    samples = {sample.id: sample for sample in later(hostile(releases.figures(40)))}
    one = next(sample for sample in samples.values() if sample.decision == "keep" and sample.teacher_mask is None)
    found = looking.go(f"grid?filter={json.dumps({'id': one.id})}")
    tile = f".tile[data-id='{one.id}'] canvas"
    shown: dict[str, np.ndarray] = {}
    for mode in ("Image", "Overlay", "Outline", "Cut-out"):
        found.page.get_by_role("button", name=mode, exact=True).click()
        shown[mode] = found.pixels(tile)
    image = shown["Image"]
    np.testing.assert_allclose(tenths(image), tenths(one.image), atol=5)  # it went twice through JPEG
    np.testing.assert_allclose(shown["Overlay"], mixed(image, one.mask, MASK, 0.5), atol=1)
    edge = boundary(one.mask, 1, border=False)
    np.testing.assert_array_equal(shown["Outline"], mixed(image, edge, MASK, 1.0))
    np.testing.assert_array_equal(shown["Cut-out"][one.mask], image[one.mask])
    assert {tuple(pixel) for pixel in shown["Cut-out"][~one.mask].tolist()} == {(205,) * 3, (150,) * 3}
    found.page.get_by_role("button", name="Overlay", exact=True).click()
    found.page.get_by_label("Opacity", exact=True).fill("20")
    np.testing.assert_allclose(found.pixels(tile), mixed(image, one.mask, MASK, 0.2), atol=1)


def test_the_sample_shows_the_teacher_the_disagreement_and_the_band(looking: Visit) -> None:
    samples = later(hostile(releases.figures(40)))
    one = next(sample for sample in samples if sample.decision == "keep" and sample.teacher_mask is not None)
    assert one.teacher_mask is not None
    found = looking.go(f"sample?id={one.id}")
    found.page.get_by_role("button", name="Image", exact=True).click()
    found.page.wait_for_selector("[data-picture=disagreement]")
    image = found.pixels("[data-picture=mask] canvas")
    near = band(one.mask, band_width(*one.mask.shape))
    np.testing.assert_allclose(found.pixels("[data-picture=band] canvas"), mixed(image, near, BAND, 0.6), atol=1)
    teacher = mixed(image, one.teacher_mask, TEACHER, 0.5)
    np.testing.assert_allclose(found.pixels("[data-picture=teacher] canvas"), teacher, atol=1)
    differ = mixed(image, one.mask & ~one.teacher_mask, MASK, 0.75)
    differ = np.where((one.teacher_mask & ~one.mask)[..., None], image * 0.25 + np.array(TEACHER) * 0.75, differ)
    np.testing.assert_allclose(found.pixels("[data-picture=disagreement] canvas"), differ, atol=1)


def test_a_bar_of_a_histogram_opens_as_many_samples_as_it_counts(looking: Visit) -> None:
    found = looking.go("quality?column=student_iou&by=lighting_level")
    bars = found.page.locator(".bin")
    for at in (0, bars.count() // 2, bars.count() - 1):
        found.go("quality?column=student_iou&by=lighting_level")
        counted = found.page.locator(".bin").nth(at).get_attribute("aria-label") or ""
        found.page.locator(".bin").nth(at).click()
        found.stands("grid")
        assert f": {found.page.get_attribute('[data-total]', 'data-total')}. Show" in counted


def test_a_filter_without_samples_and_an_unknown_sample_say_so(looking: Visit) -> None:
    found = looking.go(f"grid?filter={json.dumps({'state': ['disputed']})}")
    assert "No sample matches" in found.text("main")
    found.go("nowhere")
    assert "no screen" in found.text("main")
    found.go(f"sample?id={'0' * 32}")
    assert found.page.get_attribute("main", "data-state") == "failed"
    assert found.page.get_by_role("button", name="Try again").is_visible()
    found.forgive(404)


def test_a_check_of_the_bytes_can_be_stopped(browser: Browser, own: Path) -> None:
    with running(own) as url, visit(browser, url) as found:
        found.open("integrity").page.click("#check")
        found.page.click("#stop")
        found.page.wait_for_selector("[data-integrity='not run']")
        found.hears("The check was stopped")
        assert found.page.locator("#stop").count() == 0
        assert found.page.locator("#check").is_enabled()


def check_bytes(who: Visit) -> str:
    who.go("integrity").page.click("#check")
    done = who.page.wait_for_selector(
        "[data-integrity=good], [data-integrity=problems], [data-integrity=failed]", timeout=60_000
    )
    return (done and done.get_attribute("data-integrity")) or ""


def sign(who: Visit) -> None:
    who.go("signoff")
    for area in who.page.locator("#signoff textarea:not([name=conditions])").all():
        area.fill("as the data card says")
    for box in who.page.locator("#signoff [type=checkbox]").all():
        box.check()
    who.page.click("#signoff [type=submit]")
    who.page.wait_for_selector("[data-signoff=signed]")


def test_a_signoff_is_void_once_a_byte_has_changed(browser: Browser, own: Path, tmp_path: Path) -> None:
    with running(own, reviewer="Ada") as url, visit(browser, url) as ada:
        ada.open(f"grid?filter={json.dumps({'decision': ['hold']})}")
        ada.page.click("[data-bulk=open]")
        ada.page.click("dialog [data-verdict=hold]")
        ada.page.click("[data-bulk=send]")
        ada.page.wait_for_selector(".tile[data-state=hold]")
        assert check_bytes(ada) == "good"
        ada.go("signoff").page.click("#signoff [type=submit]")
        ada.hears("stand against")
        ada.forgive(400)
        sign(ada)
        assert check_signed(own).reviewer == "Ada"

        shard = next(entry.path for entry in read_release(own).files if entry.path.startswith("shards/train"))
        flip_byte(own / shard, 300)
        ada.page.wait_for_timeout(1100)  # the server looks at its files once in a second
        ada.go("overview")
        assert "Void" in ada.text("main")
        assert shard in ada.text("#void")
        ada.go("signoff").page.wait_for_selector("[data-signoff=broken]")
        assert ada.page.locator("#written").is_visible()
        ada.go(f"sample?id={listed(own)[0]}").press("a")
        ada.page.get_by_role("dialog", name="Not recorded").get_by_role("button").click()
        ada.forgive(409)
        assert check_bytes(ada) == "problems"
        assert shard in ada.text("#integrity")
        flip_byte(own / shard, 300)
        assert check_bytes(ada) == "good"
        ada.go("signoff").page.wait_for_selector("[data-signoff=signed]")

        other = releases.write(tmp_path / "other", releases.figures(6))
        shutil.copy(other / "release.json", own / "release.json")
        ada.go("overview")
        assert ada.page.get_attribute("main", "data-state") == "failed"
        assert "bytes changed" in ada.text("#changed")
        ada.forgive(409)
    with pytest.raises(UnsignedError):
        check_signed(own)


def test_a_signoff_with_conditions_can_be_withdrawn(browser: Browser, own: Path) -> None:
    with running(own) as url, visit(browser, url) as ada:
        ada.open("signoff")
        ada.page.fill("#signoff [name=conditions]", "for trials alone")
        ada.page.fill("#signoff [name=name]", "Ada")
        ada.page.click("#signoff [type=submit]")
        ada.page.wait_for_selector("[data-signoff=signed]")
        assert "for trials alone" in ada.text("main")
        ada.page.click("#withdraw")
        ada.page.fill("dialog textarea", "a mistake")
        ada.page.click("dialog [type=submit]")
        ada.page.wait_for_selector("[data-signoff=withdrawn]")
    assert [event.kind for event in ReviewLog.open(own).events()] == ["signoff", "withdraw_signoff"]


def test_a_newer_release_is_told_and_a_server_that_only_reads_decides_nothing(browser: Browser, own: Path) -> None:
    with running(own, read_only=True) as url, visit(browser, url) as found:
        found.page.clock.install()
        found.open("grid").press("a")
        found.hears("only reads")
        assert found.page.locator("#newer").count() == 0
        root, parent = own.parent.parent, Catalog.open(own).fingerprint
        releases.write(root, releases.figures(12, seed=1), parents=(parent,))
        found.page.clock.fast_forward(31_000)  # nobody touches the page
        found.page.click("#newer a")
        found.stands("compare")
        assert found.page.locator("#newer").is_visible()
    assert not ReviewLog.open(own).events()


def test_a_server_that_stopped_is_told(browser: Browser, own: Path) -> None:
    context = browser.new_context()
    with running(own) as url:
        found = Visit(context.new_page(), url).open("grid")
    found.go("coverage")
    assert "does not answer" in found.text("main")
    context.close()
