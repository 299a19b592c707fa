"""The static report in a real browser: it opens from a file without a network, and draws masks without a script."""

import dataclasses
import io
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Browser, BrowserContext, Locator, Page

from review.report import write_report
from tests.review import releases
from tests.review.browser import launched, need_chromium
from tests.review.test_report import AT, HOSTILE

COLOUR = np.array([86, 180, 233])
EDGE = 6  # pixels at the border of a tile, where its round corners are, which are not looked at
Pixels = NDArray[np.float64]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    need_chromium()
    with launched() as found:
        yield found


@pytest.fixture(scope="module")
def samples() -> list[releases.Sample]:
    drawn = releases.figures(30)
    return [
        dataclasses.replace(one, attributes=dict.fromkeys(releases.ATTRIBUTES, HOSTILE), reasons=(HOSTILE,))
        for one in drawn
    ]


@pytest.fixture(scope="module")
def path(samples: list[releases.Sample], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(releases.write(tmp_path_factory.mktemp("report"), samples), at=AT).path


@pytest.fixture
def page(browser: Browser, path: Path) -> Iterator[Page]:
    """The report, opened offline; the test fails on any error of the console, and on any request but for the file."""
    context: BrowserContext = browser.new_context(offline=True, viewport={"width": 1440, "height": 900})
    faults: list[str] = []
    page = context.new_page()
    page.on("console", lambda said: faults.append(f"{said.type}: {said.text}"))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("dialog", lambda dialog: (faults.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda asked: asked.url.startswith(("file:", "data:")) or faults.append(asked.url))
    page.on("requestfailed", lambda asked: faults.append(f"failed: {asked.url[:80]}"))
    page.goto(path.as_uri())
    page.wait_for_function("[...document.images].every(one => one.complete)")
    yield page
    context.close()
    assert faults == []


def test_the_report_opens_offline_with_all_its_pictures(page: Page) -> None:
    assert page.evaluate("[...document.images].filter(one => !one.naturalWidth).length") == 0
    assert page.evaluate("document.images.length") >= 2 * page.locator("figure[id^=s-]").count() > 0
    assert page.locator("script").count() == 0


def test_nothing_overflows_at_390_pixels(page: Page) -> None:
    for width in (390, 1440):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") == width


def test_masks_are_drawn_over_the_photograph(page: Page, samples: list[releases.Sample]) -> None:
    sample = next(one for one in samples if one.decision == "keep" and one.teacher_mask is None)
    tile = page.locator(f"#s-{sample.id} .pic")
    seen = {mode: _shot(page, tile, mode) for mode in ("none", "overlay", "outline", "cut")}
    plain = seen["none"]
    size = (plain.shape[1], plain.shape[0])
    mask = cv2.resize(sample.mask.astype(np.uint8), size, interpolation=cv2.INTER_LINEAR)
    inside, outside = (cv2.erode(one, np.ones((11, 11))) > 0 for one in (mask, 1 - mask))
    for part in (inside, outside):
        part[:EDGE], part[-EDGE:], part[:, :EDGE], part[:, -EDGE:] = False, False, False, False
    band = ~inside & ~outside
    assert inside.sum() > 500 < outside.sum()
    np.testing.assert_allclose(seen["overlay"][inside], (plain[inside] + COLOUR) / 2, atol=3)
    np.testing.assert_allclose(seen["overlay"][outside], plain[outside], atol=1)
    np.testing.assert_allclose(seen["outline"][inside | outside], plain[inside | outside], atol=1)
    assert (np.abs(seen["outline"][band] - COLOUR).max(axis=1) < 3).sum() > 100
    np.testing.assert_allclose(seen["cut"][inside], plain[inside], atol=2)
    assert seen["cut"][outside].max() == 0


def test_what_the_teacher_had_said_is_outlined(page: Page, samples: list[releases.Sample]) -> None:
    sample = next(one for one in samples if one.decision == "keep" and one.teacher_mask is not None)
    tile = page.locator(f"#s-{sample.id} .pic")
    orange = np.array([213, 94, 0])
    assert (np.abs(_shot(page, tile, "overlay") - orange).max(axis=2) < 3).sum() > 100
    assert (np.abs(_shot(page, tile, "none") - orange).max(axis=2) < 3).sum() == 0


def _shot(page: Page, tile: Locator, mode: str) -> Pixels:
    """(H, W, 3) what is seen of a tile."""
    page.check(f"#mask-{mode}")
    tile.scroll_into_view_if_needed()
    seen = np.array(Image.open(io.BytesIO(tile.screenshot())).convert("RGB")).astype(float)
    seen[:EDGE], seen[-EDGE:], seen[:, :EDGE], seen[:, -EDGE:] = 0, 0, 0, 0
    return seen
