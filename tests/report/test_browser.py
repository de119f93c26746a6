"""The page in a real browser, offline: Debian's chromium, driven by Playwright."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from defectgen.dataset.manifest import read_manifest
from defectgen.review import read_review

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright (pip install -e '.[dev]')")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs a chromium on the PATH (apt-get install chromium)")

SIZES = {"phone": (390, 844), "tablet": (820, 1180), "desktop": (1440, 900)}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        # Root, as in a container, needs it to be without its own sandbox.
        flags = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        yield driver.chromium.launch(executable_path=CHROMIUM, args=flags)


class Opened:
    """The report in a window; what the browser said and asked for."""

    def __init__(self, browser: Any, page: Path, size: str, scheme: str = "light") -> None:
        width, height = SIZES[size]
        self.context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, offline=True, accept_downloads=True
        )
        self.tab = self.context.new_page()
        self.said: list[str] = []
        self.requested: list[str] = []
        self.tab.on("console", lambda message: self.said.append(message.text))
        self.tab.on("pageerror", lambda error: self.said.append(str(error)))
        self.tab.on("request", lambda request: self.requested.append(request.url))
        self.tab.goto(page.as_uri())

    def close(self, page: Path) -> None:
        asked = [url for url in self.requested if not url.startswith(("data:", "blob:"))]
        assert set(asked) == {page.as_uri()}
        assert self.said == []
        self.context.close()


@pytest.fixture
def opened(browser: Any, page: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    window = Opened(browser, page, getattr(request, "param", "desktop"))
    yield window.tab
    window.close(page)


every_size = pytest.mark.parametrize("opened", list(SIZES), indirect=True)


@every_size
def test_nothing_is_cut_off_empty_or_wider_than_the_page(opened: Any) -> None:
    assert opened.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    pictures = opened.evaluate("[...document.images].map(i => [i.complete, i.naturalWidth])")
    assert len(pictures) > 20 and all(complete and width > 0 for complete, width in pictures)
    charts = opened.evaluate(
        "[...document.querySelectorAll('.chart svg')].map(s => "
        "[s.getBoundingClientRect().width, s.getBoundingClientRect().height, s.querySelectorAll('path').length])"
    )
    assert len(charts) >= 6
    assert all(width > 100 and height > 60 and paths > 5 for width, height, paths in charts)
    assert opened.evaluate("[...document.querySelectorAll('.wide')].every(w => w.scrollWidth <= w.clientWidth + 1)")
    # Side by side or one below the other, never on top of each other.
    overlapping = opened.evaluate(
        """() => {
          const kinds = 'main > section, .charts > .chart, #grid > .tile, .strip > figure';
          const parts = [...document.querySelectorAll(kinds)];
          const frames = parts.map(p => [p, p.getBoundingClientRect()]);
          return frames.flatMap(([p, a], i) => frames.slice(i + 1).filter(([q, b]) =>
            p.parentNode === q.parentNode && a.left < b.right - 1 && b.left < a.right - 1
            && a.top < b.bottom - 1 && b.top < a.bottom - 1).map(([q]) => p.className + ' on ' + q.className));
        }"""
    )
    assert overlapping == []


@every_size
def test_filters_choose_what_is_shown(opened: Any) -> None:
    items = opened.evaluate("JSON.parse(document.getElementById('data').textContent).items")
    assert opened.locator(".tile").count() == len(items) == 8
    for class_id in range(4):
        opened.select_option("[name=class]", str(class_id))
        expected = sum(any(box["class_id"] == class_id for box in item["boxes"]) for item in items)
        assert opened.locator(".tile").count() == expected
    opened.select_option("[name=class]", "")
    scores = sorted(min(box["score"] for box in item["boxes"]) for item in items)
    middle = scores[len(scores) // 2] + 0.005
    opened.locator("[name=score]").fill(f"{middle:.2f}")
    shown = opened.locator(".tile").count()
    assert shown == sum(score <= round(middle, 2) for score in scores) and shown > 0
    opened.locator("[name=score]").fill("0")
    assert opened.locator(".tile").count() == sum(score == 0 for score in scores)
    assert "none fits" in opened.locator("#count").inner_text() or min(scores) == 0


@every_size
def test_slider_uncovers_the_clean_image(opened: Any) -> None:
    opened.locator(".tile").first.click()
    pair, slider = opened.locator("#pair"), opened.locator("#slider")
    assert opened.locator("#viewer").is_visible()
    # With labels and edge off the whole difference is the defect.
    opened.keyboard.press("l")
    assert not pair.locator(".box").first.is_visible()
    opened.add_style_tag(content=".edge { display: none }")
    slider.fill("100")
    with_clean = shown(pair)
    slider.fill("0")
    with_defect = shown(pair)
    item = opened.evaluate("JSON.parse(document.getElementById('data').textContent).items[0]")
    inside = np.zeros(with_clean.shape[:2], bool)
    for x, y, width, height, _ in item["before"]:
        across, down = (pixels / side for pixels, side in zip(inside.shape[::-1], item["size_wh"], strict=True))
        inside[int(y * down) : math.ceil((y + height) * down), int(x * across) : math.ceil((x + width) * across)] = True
    changed = np.abs(with_clean.astype(int) - with_defect).max(axis=2) > 14
    around = cv2.dilate(inside.astype(np.uint8), np.ones((5, 5))).astype(bool)
    assert changed.sum() >= 5 and not (changed & ~around).any()
    # Dragged from where the clean window lies: the browser would drag that picture.
    slider.fill("100")
    frame = pair.bounding_box()
    x, y, width, height, _ = item["before"][0]
    start = (x + width / 2) / item["size_wh"][0], (y + height / 2) / item["size_wh"][1]
    opened.mouse.move(frame["x"] + start[0] * frame["width"], frame["y"] + start[1] * frame["height"])
    opened.mouse.down()
    opened.mouse.move(frame["x"] + 0.6 * frame["width"], frame["y"] + frame["height"] / 2, steps=4)
    opened.mouse.move(frame["x"] + 0.75 * frame["width"], frame["y"] + frame["height"] / 2, steps=4)
    opened.mouse.up()
    assert abs(float(slider.input_value()) - 75) < 2
    opened.keyboard.press("Escape")
    assert not opened.locator("#viewer").is_visible()


def shown(part: Any) -> np.ndarray:
    """uint8 (H, W, 3): a part of the page."""
    return cv2.imdecode(np.frombuffer(part.screenshot(), np.uint8), cv2.IMREAD_COLOR)


def test_keys_work_where_what_had_the_focus_is_disabled(opened: Any) -> None:
    opened.locator(".tile").first.click()
    opened.locator("#slider").focus()
    opened.evaluate("document.getElementById('slider').disabled = true")
    opened.keyboard.press("r")
    assert opened.locator("#reviewed").inner_text() == "0 accepted, 1 rejected"


def test_two_windows_of_one_report_keep_each_others_decisions(opened: Any, page: Path) -> None:
    other = opened.context.new_page()
    other.goto(page.as_uri())
    for tab, place in ((opened, 0), (other, 1)):
        tab.locator(".tile").nth(place).click()
        tab.keyboard.press("r")
        tab.keyboard.press("Escape")
    assert other.locator("#reviewed").inner_text() == "0 accepted, 2 rejected"
    opened.wait_for_function("document.getElementById('reviewed').textContent === '0 accepted, 2 rejected'")
    other.close()


def test_page_that_may_keep_nothing_says_so(browser: Any, page: Path) -> None:
    window = Opened(browser, page, "desktop")
    window.tab.evaluate("() => { Storage.prototype.setItem = () => { throw new Error('full'); }; }")
    assert not window.tab.locator("#unkept").is_visible()
    for place in (0, 1):
        window.tab.locator(".tile").nth(place).click()
        window.tab.keyboard.press("r")
        window.tab.keyboard.press("Escape")
    assert window.tab.locator("#unkept").is_visible()
    assert window.tab.locator("#reviewed").inner_text() == "0 accepted, 2 rejected"
    window.close(page)


@every_size
def test_review_by_keyboard_is_exported_as_synth_reads_it(opened: Any, run_folder: Path, tmp_path: Path) -> None:
    header = read_manifest(run_folder / "dataset/manifest.jsonl").header
    indexes = opened.evaluate("JSON.parse(document.getElementById('data').textContent).items.map(i => i.index)")
    assert opened.locator("#export").is_disabled()
    opened.locator(".tile").first.focus()
    opened.keyboard.press("Enter")
    for key in ("r", "a", "ArrowRight", "r", "ArrowLeft", "u"):
        opened.keyboard.press(key)
    opened.keyboard.press("Escape")
    assert opened.locator(".tile[data-review=rejected]").count() == 1
    opened.select_option("[name=review]", "accepted")
    assert opened.locator(".tile").count() == 1
    with opened.expect_download() as download:
        opened.locator("#export").click()
    path = tmp_path / "review.json"
    download.value.save_as(path)
    assert download.value.suggested_filename == "review.json"
    review = read_review(path)
    assert (review["rejected"], review["accepted"]) == ([indexes[0]], [indexes[1]])
    assert review["recipe_sha256"] == header["recipe_sha256"]
    assert review["generator_fingerprint"] == header["generator_fingerprint"]
    # It outlives the page until it is exported.
    opened.reload()
    assert opened.locator("#reviewed").inner_text() == "1 accepted, 1 rejected"
    json.loads(path.read_text("utf-8"))


def test_dark_page_is_dark_and_the_button_turns_it(browser: Any, page: Path) -> None:
    window = Opened(browser, page, "desktop", "dark")
    paper = "getComputedStyle(document.body).backgroundColor"
    ink = "getComputedStyle(document.querySelector('.chart svg text')).fill"
    assert window.tab.evaluate(paper) == "rgb(22, 24, 27)"
    assert window.tab.evaluate(ink) == "rgb(232, 232, 230)"
    window.tab.locator("#theme").click()
    assert window.tab.evaluate(paper) == "rgb(255, 255, 255)"
    window.close(page)


def test_print_hides_what_paper_cannot_do(opened: Any) -> None:
    opened.emulate_media(media="print")
    assert not opened.locator("nav").is_visible() and not opened.locator("#filters").is_visible()
    assert opened.locator("#answer").is_visible() and opened.locator(".tile").first.is_visible()


def test_print_is_dark_on_light_whatever_the_screen_is_and_fits_the_paper(browser: Any, page: Path) -> None:
    window = Opened(browser, page, "desktop", "dark")
    window.tab.locator("#theme").click()
    window.tab.locator("#theme").click()
    window.tab.set_viewport_size({"width": 718, "height": 1000})
    window.tab.emulate_media(media="print")
    assert window.tab.evaluate("getComputedStyle(document.body).color") == "rgb(27, 29, 32)"
    assert window.tab.evaluate(
        "[...document.querySelectorAll('table')].every(t => t.getBoundingClientRect().right <= innerWidth)"
    )
    assert window.tab.locator("details pre").is_visible()
    window.close(page)
