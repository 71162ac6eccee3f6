import dataclasses
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from toy_dataset import toy_dataset

from cvgl_models.evaluation import truth
from cvgl_models.evaluation.page import evaluation_page
from cvgl_models.metrics import outcomes, retrieval_report

CHROMIUM = Path(os.environ.get("CVGL_CHROMIUM", "/usr/bin/chromium"))
HOSTILE = "</script><script>alert(1)</script>"


@pytest.fixture(scope="module")
def toy():
    return toy_dataset(grid=2, test_grid=4).select("test")


def made(dataset, wrong=(), **options):
    """Return the page of a retriever that is perfect but for some queries, which find the next reference."""
    facts = truth(dataset)
    num = dataset.references.num_rows
    found_rows = facts.positives.copy()
    found_rows[list(wrong)] = (found_rows[list(wrong)] + 1) % num
    query, reference = np.eye(num, dtype=np.float32)[found_rows], np.eye(num, dtype=np.float32)
    found = outcomes(query, reference, facts)
    report = dataclasses.replace(
        retrieval_report(query, reference, facts, found),
        setting={"recipe": "tiny", "split": "test", "protocol": "cross-area", **options.pop("setting", {})},
        calibration=options.pop("calibration", None),
    )
    return evaluation_page(report, found, dataset, facts, query, reference, **options)


def data_of(page):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])


def test_data_of_the_page(toy):
    page = made(toy, wrong=[3, 40])
    data = data_of(page)
    assert len(data["map"]["id"]) == 48
    assert len(data["failures"]) == 2
    assert data["map"]["error_m"] == sorted(data["map"]["error_m"])  # the worst are drawn last
    by_id = dict(zip(data["map"]["id"], data["map"]["covers"], strict=True))
    wrong = {toy.queries["query_id"][row].as_py() for row in (3, 40)}
    assert {name for name, covers in by_id.items() if not covers} == {failure["id"] for failure in data["failures"]}
    assert {failure["id"] for failure in data["failures"]} == wrong
    for failure in data["failures"]:
        positive, first = failure["references"][:2]
        assert (positive["covers"], first["covers"]) == (True, False)
        assert first["away_m"] == pytest.approx(failure["error_m"], abs=0.11)
        assert failure["image"].startswith("data:image/webp;base64,")
    assert data["error_curve"][-1][1] == 1.0
    assert "95.8 %" in page


def test_equal_input_gives_equal_bytes_and_nothing_is_asked_of_the_network(toy):
    page = made(toy, wrong=[1])
    assert page == made(toy, wrong=[1])
    assert "default-src 'none'" in page
    without_scripts = re.sub(r"<script.*?</script>", "", page, flags=re.S)
    assert not re.search(r"""(?:src|href)=["'](?!data:)|@import|url\((?!data:)""", without_scripts)
    assert "{{" not in page


def test_without_images_and_without_failures(toy):
    page = made(toy, wrong=[1], with_images=False)
    assert "data:image/webp" not in page
    assert "None: the top-1 covers every query." in made(toy)
    limited = {"fov_deg": 90.0, "heading": "unknown", "fill": "zero", "seed": 2}
    assert "Field of view 90°, the rest black; heading unknown (seed 2)." in made(toy, setting={"conditions": limited})


def test_hostile_names_stay_text(toy):
    index = toy.queries.schema.get_field_index("query_id")
    names = [HOSTILE, *toy.queries["query_id"].to_pylist()[1:]]
    hostile = dataclasses.replace(
        toy, queries=toy.queries.set_column(index, "query_id", [names]), images={**toy.images, HOSTILE: b"broken"}
    )
    page = made(hostile, wrong=[0], setting={"recipe": HOSTILE})
    assert HOSTILE not in page
    (failure,) = data_of(page)["failures"]
    assert (failure["id"], failure["image"]) == (HOSTILE, "")


def test_broken_embeddings_give_a_page(toy):
    facts = truth(toy)
    query, reference = np.full((48, 4), np.nan, np.float32), np.eye(16, 4, dtype=np.float32)
    found = outcomes(query, reference, facts)
    report = retrieval_report(query, reference, facts, found)
    data = data_of(evaluation_page(report, found, toy, facts, query, reference))
    assert set(data["map"]["error_m"]) == {None}
    assert len(data["failures"][0]["references"]) == 1


@pytest.mark.skipif(not CHROMIUM.is_file(), reason=f"no Chromium at {CHROMIUM}; set CVGL_CHROMIUM")
def test_in_a_browser(toy, tmp_path):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    bins = {"confidence": [0.2, 0.8], "share": [0.1, 0.9], "num": [24, 24], "expected_calibration_error": 0.1}
    path = tmp_path / "page.html"
    path.write_text(made(toy, wrong=[3, 40], calibration=bins), encoding="utf-8")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(
            executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        )
        page, wrong = browser.new_page(), []
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: wrong.append(request.url) if request.url.startswith("http") else None)
        page.goto(path.as_uri())
        shades = page.evaluate("() => [0, 50, 100, 1000, null].map(window.cvglEvaluation.shadeOfError)")
        assert shades == ["rgb(26,150,65)", "rgb(255,223,110)", "rgb(215,25,28)", "rgb(215,25,28)", "#7a7f85"]
        assert page.locator(".chart svg").count() == 4
        assert page.locator(".failure").count() == 2
        assert page.locator(".failure .frame").count() == 12
        page.locator(".failure button").first.click()
        popup = page.locator(".leaflet-popup-content").inner_text()
        assert "top-1 covers it" in popup
        assert "no" in popup.split()
        page.set_viewport_size({"width": 390, "height": 800})
        assert page.evaluate("() => document.documentElement.scrollWidth <= window.innerWidth")
        assert wrong == []
        browser.close()
