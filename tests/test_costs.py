"""What a build will cost, before it starts: from what a source says of itself, and through `plan`."""

from __future__ import annotations

import json
import math
import re

import pytest
from cvgl_cli import data
from fakes import FakeImagery, FakePanoramas
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from cvgl_data import planning
from cvgl_data.planning.costs import estimate
from cvgl_data.recipe import DatasetRecipe, resolve
from cvgl_data.sources import IMAGERY, PANORAMAS
from cvgl_data.sources.google_static import GoogleStaticPanoramas
from cvgl_data.types import Cost, Panorama, Terms

BBOX = [-122.3300, 47.6200, -122.3270, 47.6215]
STRICT = Terms(name="strict", url="https://h/terms", summary="No.", redistributable=False, must_accept=True)
FREE = Terms(name="free", url="https://h/free", summary="Yes.", redistributable=True, must_accept=False)


class Priced:
    """A source that costs what it is told to."""

    name = "priced"

    def __init__(self, terms=None, **cost):
        self.terms = terms
        self._cost = Cost(**cost)

    def cost(self):
        return self._cost


def of(items, rate_per_s=10.0, **cost):
    return estimate("panoramas", Priced(**cost), items, rate_per_s=rate_per_s)


# One source


def test_requests_are_counted_by_host_and_rounded_up():
    found = of(10, requests={"tiles": 1.0, "metadata": 0.01, "never": 0.0}, bytes=1500.4, note="guessed")
    assert found.requests == {"tiles": 10, "metadata": 1}
    assert (found.kind, found.source, found.items, found.is_bound) == ("panoramas", "priced", 10, False)
    assert (found.bytes, found.note) == (15_004, "guessed")


def test_the_last_bits_of_a_product_are_no_request():
    assert 100 * 0.07 > 7
    assert of(100, requests={"h": 0.07}).requests == {"h": 7}


@given(st.integers(1, 10**7), st.floats(1e-3, 40.0), st.sampled_from([0.5, 10.0, 50.0]))
def test_requests_and_time_bound_what_will_be_sent(items, each, rate_per_s):
    found = of(items, rate_per_s, requests={"h": each})
    assert each * items - 1e-5 <= found.requests["h"] < each * items + 1
    assert found.seconds == pytest.approx(found.requests["h"] / rate_per_s)


def test_the_busiest_host_takes_the_longest():
    requests = {"a": 3.0, "b": 1.0}
    assert of(100, requests=requests).seconds == 30.0
    assert of(100, 50.0, requests=requests).seconds == 6.0
    assert estimate("imagery", Priced(requests=requests), 100).seconds == 30.0, "at 10 per second unless told"


def test_without_a_rate_the_time_is_not_limited_by_one():
    assert of(1000, 0.0, requests={"h": 1.0}).seconds == 0.0


def test_finding_the_items_takes_requests_too():
    source = Priced(requests={"h": 2.0})
    discovery = {"h": 4.2, "other": 1.0, "idle": 0.0}
    found = estimate("panoramas", source, 10, discovery=discovery, rate_per_s=1.0)
    assert found.requests == {"h": 25, "other": 1}
    assert found.seconds == 25.0
    assert estimate("panoramas", source, 0, discovery=discovery).requests == {"h": 5, "other": 1}


def test_an_unknown_number_stays_unknown():
    found = estimate("panoramas", Priced(requests={"h": 2.0}, bytes=9.0, usd=1.0, per_day=1), None, discovery={"h": 3})
    assert (found.items, found.requests, found.bytes, found.usd, found.days) == (None, {"h": 3}, 0, 0.0, 1)


def test_money_and_days():
    found = of(1000, usd=0.042, per_day=300)
    assert (found.usd, found.days) == (42.0, 4)
    assert [of(items, per_day=300).days for items in (0, 1, 300, 301)] == [1, 1, 1, 2]
    assert of(3, usd=0.0049).usd == 0.01, "to the cent"
    assert of(3, usd=None).usd is None, "a price that is not known"


def test_a_bound_is_a_bound():
    assert estimate("panoramas", Priced(), 7, is_bound=True).is_bound


def test_only_terms_that_must_be_accepted_are_named():
    assert estimate("imagery", Priced(terms=STRICT), 1).accept_terms == "strict"
    assert estimate("imagery", Priced(terms=FREE), 1).accept_terms == ""
    assert estimate("imagery", Priced(), 1).accept_terms == ""


def test_a_source_that_says_nothing_is_free():
    found = estimate("imagery", FakeImagery(), 12)
    assert (found.requests, found.bytes, found.seconds, found.usd, found.days) == ({}, 0, 0.0, 0.0, None)


# A recipe


class CountingPanoramas(FakePanoramas):
    """Needs two requests to list an area, and three for each panorama."""

    name = "counting"
    there: dict[str, Panorama] = {}  # noqa: RUF012 - filled by a test

    def __init__(self):
        super().__init__(self.there)

    def cost(self):
        return Cost(requests={"pictures": 3.0}, usd=0.5, per_day=2)

    def discovery(self, area):
        return {"listing": 2.0}


@pytest.fixture
def sources(monkeypatch):
    monkeypatch.setitem(IMAGERY._table, "fake", "fakes:FakeImagery")
    monkeypatch.setitem(PANORAMAS._table, "counting", f"{__name__}:CountingPanoramas")


def planned(*overrides, areas=1, **settings):
    boxes = [
        {"name": f"a{index}", "bbox": [BBOX[0] + 0.01 * index, BBOX[1], BBOX[2] + 0.01 * index, BBOX[3]]}
        for index in range(areas)
    ]
    tables = {"name": "toy", "areas": boxes, "imagery": {"source": "fake"}, "panoramas": {"source": "counting"}}
    found = planning.plan(resolve(DatasetRecipe, tables, overrides), **settings)
    imagery, panoramas = found.costs
    assert (imagery.kind, panoramas.kind) == ("imagery", "panoramas")
    return found, imagery, panoramas


@pytest.mark.usefixtures("sources")
class TestPlan:
    def test_how_many_panoramas_there_are_is_unknown(self):
        found, imagery, panoramas = planned()
        assert imagery.items == sum(area.num_tiles for area in found.areas) > 0
        assert (panoramas.items, panoramas.is_bound) == (None, False)
        assert panoramas.requests == {"listing": 2}

    def test_a_limit_bounds_it_area_by_area(self):
        _, _, panoramas = planned("panoramas.max=5", areas=3, rate_per_s=5.0)
        assert (panoramas.items, panoramas.is_bound) == (15, True)
        assert panoramas.requests == {"listing": 6, "pictures": 45}
        assert (panoramas.usd, panoramas.days, panoramas.seconds) == (7.5, 8, 9.0)
        _, imagery, panoramas = planned("panoramas.max=5", "limit=2", areas=3)
        assert (panoramas.items, imagery.items) == (6, 6)

    def test_ids_from_a_file_are_counted_and_not_looked_for(self, tmp_path):
        (tmp_path / "ids.txt").write_text("a\nb\nc\n")
        given_ids = f"panoramas.pano_ids={tmp_path / 'ids.txt'}"
        _, _, panoramas = planned(given_ids)
        assert (panoramas.items, panoramas.is_bound, panoramas.requests) == (3, False, {"pictures": 9})
        assert planned(given_ids, "panoramas.max=2")[2].items == 2

    def test_asking_the_source_gives_the_number(self, monkeypatch):
        assert planned(discover=True)[2].items == 0
        for index in range(6):
            there = Panorama(pano_id=f"p{index}", image=b"", lon=BBOX[0] + 0.001, lat=BBOX[1] + 0.0001 * (index + 1))
            monkeypatch.setitem(CountingPanoramas.there, there.pano_id, there)
        _, _, panoramas = planned(discover=True)
        assert (panoramas.items, panoramas.is_bound) == (6, False)
        assert panoramas.requests == {"listing": 2, "pictures": 18}

    def test_no_area_bounds_no_listing(self, tmp_path, golden):
        tables = {
            "name": "toy",
            "imagery": {"source": "folder", "options": {"location": str(golden / "banepa")}},
            "panoramas": {"source": "counting"},
        }
        found = planning.plan(resolve(DatasetRecipe, tables))
        assert found.costs[1].requests == {}

    def test_tiles_that_windows_share_are_asked_for_once(self):
        found, imagery, _ = planned("grid.overlap=0.5")
        (area,) = found.areas
        assert imagery.items == area.num_tiles < area.num_references


# The command


def plan(*words):
    box = ",".join(map(str, BBOX))
    return CliRunner().invoke(data.app, ["plan", "--bbox", box, *words], catch_exceptions=False)


@pytest.fixture
def nothing_set(monkeypatch):
    """No key and no other address: a plan needs neither."""
    for name in ("CVGL_GOOGLE_KEY", "CVGL_GOOGLE_STATIC_URL", "CVGL_GOOGLE_TILES_URL", "CVGL_WAYBACK_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("nothing_set")
def test_a_plan_says_money_quota_and_terms():
    done = plan("--imagery", "esri", "--panoramas", "google-static", "--max-queries", "1000")
    assert done.exit_code == 0
    rows = {line.split()[0]: line.split() for line in done.stdout.splitlines() if line.strip()}
    assert rows["imagery"][1] == "esri"
    assert rows["imagery"][-3:] == ["0.00", "-", "esri"]
    assert rows["panoramas"][1:5] == ["google-static", "at", "most", "1,000"]
    assert rows["panoramas"][-3:] == ["42.00", "-", "google"]
    assert re.search(r"google-static: 7,\d\d\d requests to maps.googleapis.com", done.stderr)
    assert "requests to wayback.maptiles.arcgis.com" in done.stderr


@pytest.mark.usefixtures("nothing_set")
def test_a_plan_of_daily_quotas():
    done = plan("--imagery", "esri", "--panoramas", "google", "--max-queries", "5000", "--json")
    _, cost = json.loads(done.stdout)["costs"]
    assert cost["source"] == "google"
    assert cost["accept_terms"] == "google"
    assert cost["days"] == math.ceil(5000 / (15_000 // 8)) == 3  # eight tiles each, 15,000 a day


@pytest.mark.usefixtures("nothing_set")
def test_a_plan_as_json_has_these_keys():
    done = plan("--imagery", "esri", "--panoramas", "google-static", "--rate", "2", "--json")
    found = json.loads(done.stdout)
    assert list(found) == ["areas", "costs"]
    imagery, panoramas = found["costs"]
    keys = [
        "kind",
        "source",
        "items",
        "is_bound",
        "requests",
        "bytes",
        "seconds",
        "usd",
        "days",
        "accept_terms",
        "note",
    ]
    assert list(imagery) == list(panoramas) == keys
    assert imagery["items"] == found["areas"][0]["num_tiles"]
    assert imagery["seconds"] == max(imagery["requests"].values()) / 2
    assert (panoramas["items"], panoramas["usd"]) == (None, 0.0)
    area = planning.areas(resolve(DatasetRecipe, {"name": "x", "areas": [{"name": "a", "bbox": BBOX}]}))[0]
    assert panoramas["requests"] == GoogleStaticPanoramas().discovery(area)


def test_an_unknown_number_is_said_to_be_unknown():
    done = plan("--imagery", "simulated", "--panoramas", "panoramax")
    assert "unknown" in done.stdout
    assert "--discover" in done.stderr


@pytest.mark.parametrize("panoramas", ["panoramax", "mapillary"])
def test_discovery_is_part_of_the_plan(panoramas):
    done = plan("--imagery", "simulated", "--panoramas", panoramas, "--json")
    _, cost = json.loads(done.stdout)["costs"]
    assert sum(cost["requests"].values()) in (1, 2)  # the box is smaller than a vector tile, and may lie on an edge
