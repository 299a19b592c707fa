"""A real browser on a real server: pages that note every error, and what a test asks of them."""

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("playwright.sync_api", reason="playwright is absent (pip install playwright)")

from playwright.sync_api import Browser, Page, Request, Response

from benchmarks.review_screens import CHROMIUM, go
from benchmarks.review_screens import chromium as launched
from evaluation.boundary import Mask
from review.catalog import Catalog
from review.query import parse_query

__all__ = ["Visit", "go", "launched", "need_chromium", "visit"]

HOSTILE = "<img src=x onerror=alert(1)>"
WAIT = 20_000


def need_chromium() -> None:
    """Skip where there is no browser."""
    if not CHROMIUM.exists():
        pytest.skip(f"{CHROMIUM} is absent (apt-get install chromium, or set CURATE_CHROMIUM)")


class Visit:
    """One reviewer's page in a browser context of its own.

    Attributes:
        page: of playwright.
        faults: errors of the console and of scripts, requests that failed or were refused, requests to other hosts.
    """

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url
        self.faults: list[str] = []
        self._base = url.split("#", maxsplit=1)[0]
        page.set_default_timeout(WAIT)
        page.on("console", lambda said: said.type == "error" and self.faults.append(f"console: {said.text}"))
        page.on("pageerror", lambda error: self.faults.append(f"script: {error}"))
        page.on("dialog", lambda dialog: (self.faults.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("request", self._asked)
        page.on("requestfailed", self._failed)
        page.on("response", self._answered)

    def _asked(self, request: Request) -> None:
        if not request.url.startswith((self._base, "data:", "blob:")):
            self.faults.append(f"other host: {request.url}")

    def _failed(self, request: Request) -> None:
        if request.failure != "net::ERR_ABORTED":  # a page that is left gives up what it still waits for
            self.faults.append(f"failed: {request.url} {request.failure}")

    def _answered(self, response: Response) -> None:
        if response.status >= 400:
            self.faults.append(f"status {response.status}: {response.url}")

    def open(self, address: str = "overview") -> "Visit":
        """Come in by the printed address, and go to a screen once the page has taken its token."""
        self.page.goto(self.url)
        self.page.wait_for_function("!location.hash.startsWith('#token')")
        return self.go(address)

    def slow(self, path: str, seconds: float) -> None:
        """Let each request of the page to an address wait before it leaves."""
        self.page.evaluate(
            "([path, wait]) => { const before = window.fetch; window.fetch = async (address, options) => {"
            " if (address === path) await new Promise(resolve => setTimeout(resolve, wait));"
            " return before(address, options); }; }",
            [path, 1000 * seconds],
        )

    def go(self, address: str) -> "Visit":
        """Go to a screen and wait until it stands, with its pictures."""
        go(self.page, address)
        return self

    def stands(self, screen: str) -> None:
        """Wait until the screen of this name stands."""
        self.page.wait_for_selector(f"main[data-state=shown][data-screen={screen}]")

    def name(self, who: str) -> "Visit":
        """Answer the question for the name."""
        dialog = self.page.get_by_role("dialog", name="Who reviews?")
        dialog.get_by_label("Name").fill(who)
        dialog.get_by_role("button", name="Save").click()
        dialog.wait_for(state="detached")
        return self

    def press(self, *keys: str) -> None:
        """Press keys, one after the other."""
        for key in keys:
            self.page.keyboard.press(key)

    def text(self, selector: str) -> str:
        """The text of the first element that matches, once it is there."""
        return self.page.locator(selector).first.inner_text()

    def hears(self, part: str) -> None:
        """Wait until the page has said something with this part in it."""
        self.page.locator("#told", has_text=part).wait_for()

    def pixels(self, selector: str) -> NDArray[np.uint8]:
        """(H, W, 3) the pixels of a canvas."""
        width, height, text = self.page.locator(selector).first.evaluate(
            "canvas => { const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);"
            " let text = ''; for (let at = 0; at < data.length; at += 8192)"
            " text += String.fromCharCode(...data.subarray(at, at + 8192));"
            " return [canvas.width, canvas.height, btoa(text)]; }"
        )
        return np.frombuffer(base64.b64decode(text), np.uint8).reshape(height, width, 4)[..., :3]

    def clean(self) -> None:
        """Nothing went wrong so far."""
        assert self.faults == []

    def forgive(self, status: int) -> None:
        """Forget refusals of this status, of which there must have been one; the browser notes each in its console."""
        found = [fault for fault in self.faults if fault.startswith(f"status {status}:")]
        assert found, self.faults
        noise = f"the server responded with a status of {status}"
        self.faults = [fault for fault in self.faults if fault not in found and noise not in fault]


@contextmanager
def visit(browser: Browser, url: str, **options: Any) -> Iterator[Visit]:
    """A page of its own, that must end without a fault."""
    context = browser.new_context(locale="en-GB", **{"viewport": {"width": 1440, "height": 900}, **options})
    try:
        found = Visit(context.new_page(), url)
        yield found
        found.clean()
    finally:
        context.close()


def mixed(image: NDArray[np.uint8], where: Mask, colour: tuple[int, int, int], opacity: float) -> NDArray[np.float64]:
    """What an overlay must show: the colour mixed in at the opacity where the mask is, the picture elsewhere."""
    over = image * (1 - opacity) + np.array(colour) * opacity
    return np.where(where[..., None], over, image.astype(np.float64))


def flip_byte(path: Path, at: int) -> None:
    """Change one byte of a file."""
    data = bytearray(path.read_bytes())
    data[at] ^= 0xFF
    path.write_bytes(bytes(data))


def listed(folder: Path, **query: list[str]) -> list[str]:
    """The ids that the first page of the grid shows."""
    return [found["id"] for found in Catalog.open(folder).page(parse_query(query), offset=0, limit=60)["samples"]]
