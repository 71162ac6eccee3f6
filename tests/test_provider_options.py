"""Refreshing what is there, and choosing panoramas: by id, by day, by distance, by number."""

from __future__ import annotations

import dataclasses
import datetime
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from serving import (
    NUM_PANORAMAS,
    NUM_TILES,
    SETTINGS,
    SharedPictures,
    asked,
    box,
    build,
    data,
    fetch_queries,
    images,
    pointed,
    quicken,
    recipe,
    rows_of,
    serving,
    since,
)

from cvgl_data.aoi import AreaOfInterest
from cvgl_data.errors import FetchError
from cvgl_data.geo import distance_m
from cvgl_data.http.running import run
from cvgl_data.selection import choose
from cvgl_data.shards import verification
from cvgl_data.simulated_providers import Faults, mapillary_id, panoramax_id
from cvgl_data.sources import open_panoramas
from cvgl_data.types import PanoramaRef

LATER = {"date": "2023-09-20"}


@pytest.fixture(scope="module")
def shared_server():
    with serving() as served:
        yield served


@pytest.fixture
def server(shared_server, monkeypatch):
    quicken(monkeypatch)
    return pointed(shared_server, monkeypatch)


def without_images(rows):
    return {name: {key: value for key, value in row.items() if key != "image"} for name, row in rows.items()}


# --- refresh


@pytest.mark.parametrize("panoramas", ["panoramax", "mapillary"])
def test_what_has_not_changed_is_not_sent_again(server, tmp_path, panoramas):
    folder, described = tmp_path / "out", recipe("esri-live", panoramas)
    build(described, folder)
    rows, packed = rows_of(folder), data(folder)
    assert all(row["etag"] for kind in rows for row in kind.values())

    number = len(server.log)
    build(described, folder)
    assert images(since(server, number)) == []

    number = len(server.log)
    build(described, folder, refresh=True)
    again = images(since(server, number))
    assert len(again) == NUM_TILES + NUM_PANORAMAS
    assert {request.status for request in again} == {304}
    assert [without_images(kind) for kind in rows_of(folder)] == [without_images(kind) for kind in rows]
    assert data(folder) == packed


def test_what_has_changed_takes_the_place_of_what_was_there(server, monkeypatch, tmp_path):
    folder, described = tmp_path / "out", recipe("esri-live", "panoramax")
    build(described, folder)
    before = rows_of(folder)
    with serving(**LATER) as later:
        pointed(later, monkeypatch)
        build(described, folder)  # nothing is asked without --refresh
        assert images(later.log) == []
        assert rows_of(folder) == before
        build(described, folder, refresh=True)
        assert {request.status for request in images(later.log)} == {200}
        after = rows_of(folder)
        for old, new in zip(before, after, strict=True):
            assert new.keys() == old.keys()
            for name in new:
                assert new[name]["sha256"] != old[name]["sha256"]
                assert new[name]["captured"].startswith("2023-09-20")
        assert verification.verify(folder, decode=True) == []
        build(described, tmp_path / "fresh")
        assert data(tmp_path / "fresh") == data(folder)


def test_what_cannot_be_had_again_stays(server, monkeypatch, tmp_path):
    folder, described = tmp_path / "out", recipe("esri-live", "panoramax")
    build(described, folder)
    before, packed = rows_of(folder), data(folder)
    faults = Faults(not_found=0.25, placeholder=0.2, wrong_size=0.2, only="esri+panoramax")
    with serving(faults=faults) as broken:
        pointed(broken, monkeypatch)
        report = build(described, folder, refresh=True)
        assert report.num_failed > 0
        assert [request for request in images(broken.log) if request.fault]
        assert rows_of(folder) == before
        assert data(folder) == packed


def test_a_release_is_never_asked_whether_it_has_changed(server, tmp_path):
    folder, described = tmp_path / "out", recipe("esri", "panoramax")
    build(described, folder)
    before, packed = rows_of(folder), data(folder)
    number = len(server.log)
    build(described, folder, refresh=True)
    again = since(server, number)
    assert asked(again, "wayback", "wayback-config", "metadata") == []
    assert {request.status for request in images(again)} == {304}, "panoramas may change"
    assert rows_of(folder) == before
    assert data(folder) == packed


# --- which panoramas


def listed(panoramas):
    """Return all panoramas that a source lists in the area."""
    area = AreaOfInterest.from_bbox(*box(), name="here")
    source = open_panoramas(panoramas, {}, workers=1)

    async def work(http, cancel):
        return [ref async for ref in source.discover(area, http)]

    try:
        return run(work, rate_per_s=0.0)
    finally:
        source.close()


def chosen(folder, panoramas, *overrides):
    counts, rows = fetch_queries(recipe("esri-live", panoramas, *overrides), folder)
    assert counts == {"ok": len(rows)}
    return {row["query_id"]: row for row in rows}


@pytest.mark.parametrize("panoramas", ["panoramax", "mapillary"])
def test_at_most_so_many_drawn_by_the_seed(server, tmp_path, panoramas):
    there = {ref.pano_id for ref in listed(panoramas)}
    assert len(there) > 2 * NUM_PANORAMAS
    few = chosen(tmp_path / "few", panoramas, "panoramas.max=3")
    more = chosen(tmp_path / "more", panoramas, "panoramas.max=6")
    other = chosen(tmp_path / "other", panoramas, "panoramas.max=6", "seed=1")
    assert (len(few), len(more), len(other)) == (3, 6, 6)
    assert few.keys() < more.keys() < there
    assert other.keys() < there
    assert other.keys() != more.keys()
    assert chosen(tmp_path / "again", panoramas, "panoramas.max=6", "seed=1") == other


@pytest.mark.parametrize("panoramas", ["panoramax", "mapillary", "google"])
def test_so_far_apart(server, tmp_path, panoramas):
    spacing_m = 110.0
    options = ("panoramas.max=0", f"panoramas.spacing_m={spacing_m}")
    found = chosen(tmp_path / "out", panoramas, *options)
    assert len(found) >= 3
    lon, lat = (np.array([row[key] for row in found.values()]) for key in ("lon", "lat"))
    apart_m = distance_m(lon[:, None], lat[:, None], lon, lat)
    assert apart_m[~np.eye(len(found), dtype=bool)].min() >= spacing_m
    refs = listed(panoramas)
    assert len(refs) > len(found)
    for ref in refs:  # none that would still have had its place was left out
        assert ref.pano_id in found or distance_m(ref.lon, ref.lat, lon, lat).min() < spacing_m
    if panoramas != "google":  # whose panoramas take a while to put together
        assert chosen(tmp_path / "again", panoramas, *options) == found
        assert chosen(tmp_path / "other", panoramas, *options, "seed=2").keys() != found.keys()


@pytest.fixture(scope="module")
def days():
    """A server whose panoramas were taken in the course of three months, and the day of each."""
    station = SharedPictures.station
    taken = {}

    def dated(self, position, provider):
        found = station(self, position, provider)
        if found is None:
            return None
        captured = found.captured - datetime.timedelta(days=int(90 * SETTINGS.chance("day", found.key)))
        for id_of in (panoramax_id, mapillary_id):
            taken[id_of(found.lon, found.lat)] = captured.date().isoformat()
        return dataclasses.replace(found, captured=captured)

    # Panoramas at other places than elsewhere, whose days another server may have in its cache.
    with mock.patch.object(SharedPictures, "station", dated), serving(every_m=23.0) as served:
        yield served, taken


@pytest.mark.parametrize("panoramas", ["panoramax", "mapillary"])
def test_taken_after_and_before(days, monkeypatch, tmp_path, panoramas):
    served, taken = days
    pointed(served, monkeypatch)
    refs = listed(panoramas)
    day_of = {ref.pano_id: taken[ref.pano_id] for ref in refs}
    assert {ref.pano_id: ref.captured[:10] for ref in refs} == day_of
    in_order = sorted(day_of.values())
    early, middle, later, late = (in_order[at] for at in (4, len(in_order) // 2, len(in_order) // 2 + 5, -5))
    cases = [
        ({"captured_after": middle, "captured_before": later}, lambda day: middle <= day < later),
        ({"captured_after": late, "captured_before": "2024-01"}, lambda day: day >= late),
        ({"captured_before": early}, lambda day: day < early),
    ]
    for number, (bounds, is_wanted) in enumerate(cases):
        wanted = {pano_id for pano_id, day in day_of.items() if is_wanted(day)}
        assert 0 < len(wanted) < len(refs)
        options = [f'panoramas.{key}="{value}"' for key, value in bounds.items()]
        found = chosen(tmp_path / str(number), panoramas, "panoramas.max=0", *options)
        assert found.keys() == wanted
        assert all(row["captured"][:10] == day_of[pano_id] for pano_id, row in found.items())
    with pytest.raises(FetchError, match="nothing to fetch"):
        chosen(tmp_path / "none", panoramas, 'panoramas.captured_after="2024"')


def write_ids(folder, kind, ids):
    path = folder / f"ids.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table({"year": [2023] * len(ids), "pano_id": ids}), path)
    elif kind == "csv":
        path.write_text("year,pano_id\n" + "".join(f"2023, {name}\n" for name in ids), encoding="utf-8-sig")
    else:
        path.write_text("\r\n".join(["", *ids, ids[0], " "]), encoding="utf-8-sig")
    return path


@pytest.mark.parametrize(
    ("panoramas", "unknown"), [("panoramax", "00000000-0000-4000-8000-000000000000"), ("mapillary", "999")]
)
def test_ids_in_a_file(server, tmp_path, panoramas, unknown):
    discovered = chosen(tmp_path / "found", panoramas, "panoramas.max=3")
    gone = [unknown, "../no id?"]
    number = len(server.log)
    ids = [*sorted(discovered, reverse=True), *gone]
    fetched = {}
    for kind in ("txt", "csv", "parquet"):
        described = recipe("esri-live", panoramas, f'panoramas.pano_ids="{write_ids(tmp_path, kind, ids)}"')
        counts, rows = fetch_queries(described, tmp_path / kind)
        assert counts == {"ok": 3, "not_found": 2}
        stored = rows_of(tmp_path / kind)[1]
        assert {name for name, row in stored.items() if row["status"] == "not_found"} == {*gone}
        fetched[kind] = {row["query_id"]: row for row in rows}
    assert fetched["txt"] == fetched["csv"] == fetched["parquet"] == discovered
    listing = ("/map/", "/mapillary-tiles/", "bbox=")
    assert not [request for request in since(server, number) if any(part in request.path for part in listing)]


def test_ids_outside_the_area_belong_to_none(server, tmp_path):
    ref, *_ = listed("panoramax")
    small = f"areas=[{{name='small', bbox=[{ref.lon - 1e-5}, {ref.lat - 1e-5}, {ref.lon + 1e-5}, {ref.lat + 1e-5}]}}]"
    far = max(listed("panoramax"), key=lambda other: distance_m(ref.lon, ref.lat, other.lon, other.lat))
    path = write_ids(tmp_path, "txt", [ref.pano_id, far.pano_id])
    found = chosen(tmp_path / "out", "panoramax", small, f'panoramas.pano_ids="{path}"')
    assert {name: row["area"] for name, row in found.items()} == {ref.pano_id: "small", far.pano_id: ""}
    few = chosen(tmp_path / "few", "panoramax", f'panoramas.pano_ids="{path}"', "panoramas.max=1")
    assert len(few) == 1
    assert few.keys() < found.keys()


@pytest.mark.parametrize(
    ("captured", "after", "before", "kept"),
    [
        ("2023-06", "2023-06-01", "", True),  # Google tells the month
        ("2023-06", "2023-06-30", "", True),
        ("2023-06", "2023-07-01", "", False),
        ("2023", "2023-06-01", "", True),
        ("2023-06", "", "2023-06-15", True),
        ("2023-06", "", "2023-06", False),
        ("2023-06-15T08:00:00Z", "2023-06-15", "2023-06-16", True),
        ("2023-06-14T23:59:59Z", "2023-06-15", "", False),
        ("", "2023", "", False),
        ("", "", "2023", False),
        ("", "", "", True),
    ],
)
def test_coarse_dates_count_by_the_days_they_may_mean(captured, after, before, kept):
    ref = PanoramaRef(pano_id="a", lon=0.0, lat=0.0, captured=captured)
    assert bool(choose([ref], captured_after=after, captured_before=before)) is kept
