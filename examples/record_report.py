"""A short film of a report: python examples/record_report.py runs/NAME/report.html OUT.webp

Needs playwright (in the `dev` extra) and a chromium on the PATH. The film in the README was made by it.
"""

from __future__ import annotations

import argparse
import io
import shutil
import sys
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

WIDTH, HEIGHT = 1000, 640


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("report", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        sys.exit("no chromium on the PATH: apt-get install chromium")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        tab.goto(arguments.report.resolve().as_uri())
        frames = film(tab)
        browser.close()
    pictures = [picture for picture, _ in frames]
    pictures[0].save(
        arguments.out,
        save_all=True,
        append_images=pictures[1:],
        duration=[milliseconds for _, milliseconds in frames],
        loop=0,
        quality=72,
        method=6,
    )
    print(f"{arguments.out}: {len(frames)} frames, {arguments.out.stat().st_size / 1e6:.1f} MB")


def film(tab: Any) -> list[tuple[Image.Image, int]]:
    """Pictures of the page, and for how many milliseconds each is shown: the answer, the gallery, a review."""
    frames: list[tuple[Image.Image, int]] = []

    def shoot(milliseconds: int) -> None:
        frames.append((Image.open(io.BytesIO(tab.screenshot())).convert("RGB"), milliseconds))

    def go_to(part: str) -> None:
        tab.locator(part).first.scroll_into_view_if_needed()
        tab.evaluate("part => document.querySelector(part).scrollIntoView()", part)
        shoot(1800)

    shoot(2500)
    for part in ("#detectors", "#gallery"):
        if tab.locator(part).count():
            go_to(part)
    tiles = tab.locator(".tile")
    if not tiles.count():
        sys.exit("the report has no gallery to film: make its data set first")
    tiles.nth(min(2, tiles.count() - 1)).click()
    tab.locator("#slider").fill("100")
    shoot(900)
    for share in (85, 70, 55, 40, 25, 10, 0):
        tab.locator("#slider").fill(str(share))
        shoot(110)
    shoot(1200)
    for key in ("ArrowRight", "r", "a"):
        tab.keyboard.press(key)
        shoot(1000)
    tab.keyboard.press("Escape")
    shoot(1500)
    for part in ("#beside", "#generator"):
        if tab.locator(part).count():
            go_to(part)
    return frames


if __name__ == "__main__":
    main()
