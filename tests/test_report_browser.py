"""The report in a real browser, without a network."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
from test_report import HOSTILE, hostile, large, toy

from cvgl_data.report import About, render

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

CHROMIUM = Path(os.environ.get("CVGL_CHROMIUM", "/usr/bin/chromium"))
ARGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--disable-sync",
    "--disable-quic",
]

pytestmark = pytest.mark.skipif(not CHROMIUM.is_file(), reason=f"no Chromium at {CHROMIUM}; set CVGL_CHROMIUM")


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=str(CHROMIUM), args=ARGS)
        yield browser
        browser.close()


def until(page, condition: str, argument=None) -> None:
    """Wait for a condition; playwright's own waiting evaluates text in the page, which its policy forbids."""
    for _ in range(200):
        if page.evaluate(condition, argument):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"still not: {condition}")


class Opened:
    """A page that is open, and everything it did that it must not."""

    def __init__(self, page, path: Path) -> None:
        self.page = page
        self.wrong: list[str] = []
        page.on("console", self._said)
        page.on("pageerror", lambda error: self.wrong.append(str(error)))
        page.on("request", lambda request: self._requested(request.url, path))
        begun = time.monotonic()
        page.goto(path.as_uri())
        until(page, "() => window.cvglReport !== undefined")
        self.seconds = time.monotonic() - begun

    def _said(self, message) -> None:
        if "willReadFrequently" not in message.text:  # the tests read the canvas, not the page
            self.wrong.append(f"{message.type}: {message.text}")

    def _requested(self, url: str, path: Path) -> None:
        if url != path.as_uri() and not url.startswith("data:"):
            self.wrong.append(f"asked for {url}")

    def place_of(self, row: int) -> tuple[float, float]:
        """Return where a query lies on the screen once the map and the page have come to rest."""
        self.page.locator("#map").scroll_into_view_if_needed()
        before = None
        while before != (before := [*self.center, self.page.evaluate("window.scrollY")]):
            self.page.wait_for_timeout(100)
        x, y = self.page.evaluate(
            """(row) => {
              const { map, queries } = window.cvglReport;
              const lat = Math.atan(Math.sinh(Math.PI * (1 - 2 * queries.y[row]))) * 180 / Math.PI;
              const at = map.latLngToContainerPoint([lat, queries.x[row] * 360 - 180]);
              const box = map.getContainer().getBoundingClientRect();
              return [box.x + at.x, box.y + at.y];
            }""",
            row,
        )
        return x, y

    @property
    def center(self) -> list[float]:
        return self.page.evaluate("(() => { const c = cvglReport.map.getCenter(); return [c.lng, c.lat]; })()")


@pytest.fixture
def open_page(browser, tmp_path):
    pages = []

    def open_page(html: str, **options) -> Opened:
        path = tmp_path / f"{len(pages)}.html"
        path.write_text(html, encoding="utf-8")
        options = {"viewport": {"width": 1200, "height": 900}, "reduced_motion": "reduce", **options}
        pages.append(browser.new_page(**options))
        return Opened(pages[-1], path)

    yield open_page
    for page in pages:
        page.close()


def query_with_positive(opened: Opened) -> int:
    """Return a query of the first area, which the map opens with."""
    return opened.page.evaluate("cvglReport.queries.positive.findIndex((row) => row >= 0)")


def test_page_opens_pans_and_shows_the_pair_that_is_clicked(open_page):
    opened = open_page(render(toy(), About(name="toy")))
    page = opened.page
    assert opened.seconds < 10  # two seconds where nothing else runs; here others may
    assert page.locator("h1").inner_text() == "toy"
    assert page.locator("#charts svg").count() == 6
    assert page.locator("#random button").count() == 12

    before = opened.center
    box = page.locator("#map").bounding_box()
    page.mouse.move(box["x"] + 300, box["y"] + 200)
    page.mouse.down()
    page.mouse.move(box["x"] + 380, box["y"] + 240, steps=4)
    page.mouse.up()
    until(page, "(lng) => cvglReport.map.getCenter().lng < lng", before[0])
    assert opened.center[1] > before[1]

    row = query_with_positive(opened)
    page.mouse.click(*opened.place_of(row))
    popup = page.locator(".popup")
    popup.wait_for()
    names = page.evaluate(
        "(row) => [cvglReport.queries.id[row], cvglReport.references.id[cvglReport.queries.positive[row]]]", row
    )
    text = popup.inner_text()
    assert names[0] in text
    assert names[1] in text
    assert "CC0-1.0" in text
    assert page.evaluate("[cvglReport.view.selected, cvglReport.view.reference]") == [
        row,
        page.evaluate("(row) => cvglReport.queries.positive[row]", row),
    ]
    images = popup.locator("img")
    assert images.count() == 2
    assert all(width > 0 for width in images.evaluate_all("(all) => all.map((image) => image.naturalWidth)"))
    assert popup.locator(".spot").count() == 1
    page.keyboard.press("Escape")
    popup.wait_for(state="detached")
    assert page.evaluate("cvglReport.view.selected") == -1
    assert opened.wrong == []


def pixels_of(page) -> list[int]:
    """Return the number of pixels of each of a few colors on the canvas of the map."""
    page.wait_for_timeout(80)
    return page.evaluate(
        """() => {
          const canvas = document.querySelector(".leaflet-overlay-pane canvas");
          const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
          const wanted = [[0, 114, 178], [213, 94, 0]];
          const counts = [0, 0, 0];
          for (let at = 0; at < data.length; at += 4) {
            if (data[at + 3]) counts[2] += 1;
            wanted.forEach((color, index) => {
              if (data[at + 3] === 255 && color.every((part, k) => data[at + k] === part)) counts[index] += 1;
            });
          }
          return counts;
        }"""
    )


def test_controls_change_what_is_drawn(open_page):
    opened = open_page(render(toy(), About()))
    page = opened.page
    page.locator("#area").select_option("1")  # west, the training area
    page.locator("input[name=color][value=split]").check()
    train, test, _ = pixels_of(page)
    assert train > 200
    assert test == 0
    assert "train" in page.locator("#legend").inner_text()
    page.locator("#area").select_option("0")
    assert pixels_of(page)[1] > 200
    page.locator("input[name=color][value=none]").check()
    page.locator("input[name=squares][value=none]").check()
    assert pixels_of(page) == [0, 0, 0]
    page.locator("input[name=squares][value=count]").check()
    assert pixels_of(page)[2] > 10_000
    assert "9+" in page.locator("#legend").inner_text()
    assert page.locator(".leaflet-tile-pane img").count() == 2
    page.locator("#imagery").uncheck()
    assert page.locator(".leaflet-tile-pane img").count() == 0

    titles = page.locator("#charts").inner_html()
    page.locator("#group").select_option(label="area east")
    assert page.locator("#charts").inner_html() != titles

    page.locator("#find").fill("e_00003")
    page.locator("#find").press("Enter")
    assert "e_00003" in page.locator(".popup h3").inner_text()
    page.locator("#find").fill("nobody")
    page.locator("#find").press("Enter")
    assert "No query 'nobody' is drawn." in page.locator("#message").inner_text()
    assert opened.wrong == []


def test_wheel_scrolls_the_page_until_the_map_is_used(open_page):
    opened = open_page(render(toy(), About()))
    page = opened.page
    zoom = page.evaluate("cvglReport.map.getZoom()")
    box = page.locator("#map").bounding_box()
    page.mouse.move(box["x"] + 200, box["y"] + 200)
    page.mouse.wheel(0, 60)
    until(page, "() => window.scrollY > 0")
    assert page.evaluate("cvglReport.map.getZoom()") == zoom
    page.evaluate("cvglReport.map.getContainer().focus()")
    page.mouse.wheel(0, -400)
    until(page, "(zoom) => cvglReport.map.getZoom() > zoom", zoom)
    assert opened.wrong == []


def test_samples_lead_to_their_place_by_keyboard(open_page):
    opened = open_page(render(toy(), About()))
    card = opened.page.locator("#random button").nth(3)
    name = card.locator("b").inner_text()
    card.focus()
    opened.page.keyboard.press("Enter")
    assert opened.page.locator(".popup h3").inner_text() == name
    row = opened.page.evaluate("cvglReport.view.selected")
    x, y = opened.place_of(row)
    box = opened.page.locator("#map").bounding_box()
    assert box["x"] < x < box["x"] + box["width"]
    assert box["y"] < y < box["y"] + box["height"]
    assert opened.wrong == []


def test_reference_without_a_query_is_shown_on_click(open_page):
    data = toy()
    data = replace(data, queries=data.queries.slice(0, 0), pairs=data.pairs.slice(0, 0))
    opened = open_page(render(data, About()))
    box = opened.page.locator("#map").bounding_box()
    opened.page.mouse.click(box["x"] + box["width"] / 2 + 9, box["y"] + box["height"] / 2 + 9)
    assert "positive of\n0 queries" in opened.page.locator(".popup").inner_text()
    assert opened.page.evaluate("cvglReport.view.reference") >= 0
    assert opened.wrong == []


def test_names_of_other_people_do_nothing(open_page):
    opened = open_page(render(*hostile()))
    page = opened.page
    row = query_with_positive(opened)
    page.evaluate("(row) => cvglReport.goToQuery(row)", row)
    assert HOSTILE.split("\u2028")[0] in page.locator(".popup").text_content()
    assert page.locator("#worst > *").count() == 1
    assert page.evaluate("window.pwned") is None
    assert opened.wrong == []


def test_references_without_a_thumbnail_are_cut_out_of_the_map(open_page, monkeypatch):
    monkeypatch.setattr("cvgl_data.report.PICTURE_BYTES", 130_000)
    opened = open_page(render(toy(), About()))
    page = opened.page
    page.evaluate(
        """() => {
          const shown = new Set(JSON.parse(document.getElementById("data").textContent).thumbnails.map(([id]) => id));
          const { queries, references } = cvglReport;
          const lacks = (row) => row >= 0 && !shown.has(references.id[row]);
          cvglReport.goToQuery(queries.positive.findIndex(lacks));
        }"""
    )
    canvas = page.locator(".popup canvas")
    canvas.wait_for()
    page.wait_for_timeout(200)
    spread = canvas.evaluate(
        """(canvas) => {
          const { data } = canvas.getContext("2d").getImageData(0, 0, 128, 128);
          const reds = data.filter((_, at) => at % 4 === 0);
          return [Math.min(...reds), Math.max(...reds), Math.min(...data.filter((_, at) => at % 4 === 3))];
        }"""
    )
    assert spread[1] - spread[0] > 50  # a picture
    assert spread[2] == 255  # all of it
    assert opened.wrong == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_fits_a_phone_and_is_legible(open_page, scheme):
    opened = open_page(render(toy(), About()), viewport={"width": 360, "height": 740}, color_scheme=scheme)
    page = opened.page
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    row = query_with_positive(opened)
    page.evaluate("(row) => cvglReport.goToQuery(row)", row)
    popup = page.locator(".leaflet-popup-content-wrapper").bounding_box()
    assert popup["x"] >= 0
    assert popup["x"] + popup["width"] <= 360
    for selector in ("h1", ".numbers dd", ".note", "td", ".popup dd", ".popup dt", "#legend b", "thead th"):
        assert contrast(page, selector) >= 4.5, selector
    assert opened.wrong == []


def contrast(page, selector: str) -> float:
    """Return the contrast ratio of the text of an element against what lies behind it."""
    return page.evaluate(
        """(selector) => {
          const parse = (text) => text.match(/[\\d.]+/g).map(Number);
          const light = (color) => {
            const linear = (part) => (part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
            const parts = color.slice(0, 3).map((part) => linear(part / 255));
            return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
          };
          const node = document.querySelector(selector);
          let behind = node;
          while (parse(getComputedStyle(behind).backgroundColor)[3] === 0) behind = behind.parentElement;
          const colors = [getComputedStyle(node).color, getComputedStyle(behind).backgroundColor];
          const [a, b] = colors.map((color) => light(parse(color)));
          return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        }""",
        selector,
    )


def test_many_points_are_drawn_and_found(open_page):
    opened = open_page(render(large(20_000, 200), About(), max_points=5_000))
    page = opened.page
    assert opened.seconds < 15
    assert page.evaluate("cvglReport.queries.id.length") == 5_000
    page.evaluate("cvglReport.goToQuery(4999)")
    page.keyboard.press("Escape")
    page.mouse.click(*opened.place_of(4999))
    assert page.evaluate("cvglReport.view.selected") == 4_999
    assert page.evaluate("cvglReport.view.reference") >= 0
    page.locator("input[name=squares][value=count]").check()
    assert pixels_of(page)[2] > 10_000
    assert opened.wrong == []
