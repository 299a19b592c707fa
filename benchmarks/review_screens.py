"""Screenshots of every screen of `curate review`, at the width of a desk and of a telephone.

Run as `python -m benchmarks.review_screens RELEASE OUTPUT [--dark] [--only grid sample]`. It looks and decides nothing,
so nothing is written beside the release; the pictures hold what the release holds, faces too. It needs the extra `dev`
and a Chromium (`apt-get install chromium`); CURATE_CHROMIUM names another one.
"""

import argparse
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

from review.server import running

CHROMIUM = Path(os.environ.get("CURATE_CHROMIUM", "/usr/bin/chromium"))
WIDTHS = (1440, 390)
SCREENS = (
    "overview", "coverage", "bias", "quality", "grid", "sample", "held", "clusters", "rights", "compare", "tasks",
    "signoff", "integrity",
)  # fmt: skip
HIGHEST = 4000
"""Pixels of a screen that are shown, from its top."""


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser without a window."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=str(CHROMIUM),
            args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--in-process-gpu"],
        )
        try:
            yield browser
        finally:
            browser.close()


def go(page: Page, address: str) -> None:
    """Go to a screen of an open page, and wait until it stands with all its pictures."""
    page.evaluate(
        "address => { delete document.querySelector('main').dataset.state;"
        " if (location.hash === address) dispatchEvent(new Event('hashchange')); else location.hash = address; }",
        f"#/{address}",
    )
    screen = address.partition("?")[0]
    page.wait_for_selector(f"main[data-state][data-screen={screen}]", timeout=30_000)
    page.wait_for_selector(".picture.waiting", state="detached", timeout=60_000)


def first_sample(page: Page) -> str:
    """The id of the first sample of the grid."""
    go(page, "grid")
    return page.locator(".tile").first.get_attribute("data-id") or ""


def shoot(page: Page, path: Path) -> None:
    """Write a picture of the whole page, down to HIGHEST."""
    height = min(HIGHEST, int(page.evaluate("document.documentElement.scrollHeight")))
    width = page.viewport_size["width"] if page.viewport_size else WIDTHS[0]
    page.screenshot(path=path, full_page=True, clip={"x": 0, "y": 0, "width": width, "height": height})


def screens(folder: Path, output: Path, names: Sequence[str], *, dark: bool) -> list[str]:
    """Write a picture of each screen at each width; returns what is wrong: errors, and pages wider than the window."""
    output.mkdir(parents=True, exist_ok=True)
    faults: list[str] = []
    with running(folder) as url, chromium() as browser:
        for width in WIDTHS:
            page = browser.new_page(
                viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light", locale="en-GB"
            )
            page.on("console", lambda message: message.type == "error" and faults.append(message.text))
            page.on("pageerror", lambda error: faults.append(str(error)))
            page.goto(url)
            page.wait_for_selector("main[data-state]")
            sample = first_sample(page)
            for name in names:
                start = time.perf_counter()
                go(page, f"sample?id={sample}" if name == "sample" else name)
                seconds = time.perf_counter() - start
                wider = int(page.evaluate("document.documentElement.scrollWidth - innerWidth"))
                if wider > 0:
                    faults.append(f"{name} is {wider} pixels wider than {width}")
                state = page.get_attribute("main", "data-state")
                if state != "shown":
                    faults.append(f"{name}: {state}")
                shoot(page, output / f"{name}-{width}.png")
                print(f"{width:5d} {name:10s} {seconds:5.1f} s")
            page.close()
    return faults


def main() -> None:
    """Walk the screens of the release named, and say what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("release", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--only", nargs="+", choices=SCREENS, default=SCREENS)
    given = parser.parse_args()
    faults = screens(given.release, given.output, given.only, dark=given.dark)
    print("\n".join(faults) or "no error, no screen wider than its window")
    raise SystemExit(bool(faults))


if __name__ == "__main__":
    main()
