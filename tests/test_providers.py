"""Whole builds from the simulated providers with the real clients: what is kept, what is refused, what heals.

What a build should hold is known exactly: the world that the providers show renders its own ground truth.
"""

from __future__ import annotations

import contextlib
import datetime
import json
from collections import Counter

import numpy as np
import pyarrow.parquet as pq
import pytest
from serving import (
    NUM_PANORAMAS,
    NUM_TILES,
    OPTIONS,
    SETTINGS,
    WIDTH,
    accepted,
    asked,
    build,
    data,
    fetch_queries,
    images,
    manifest_of,
    pointed,
    quicken,
    recipe,
    rows_of,
    serving,
    since,
    tile_of,
)

from cvgl_data import pipeline
from cvgl_data import simulated_providers as sim
from cvgl_data.dataset import open_dataset
from cvgl_data.errors import FetchError, TermsError
from cvgl_data.http import Http
from cvgl_data.images import decode
from cvgl_data.shards import verification
from cvgl_data.simulated_providers import Coverage, Faults, Settings
from cvgl_data.simulated_providers.google_static import COPYRIGHT
from cvgl_data.simulated_providers.panoramax import LICENCES
from cvgl_data.simulation import World, render_panorama

IMAGERY = ("esri", "esri-live")
PANORAMAS = ("panoramax", "mapillary", "google", "google-static")


# --- what the tests share


@pytest.fixture(scope="session")
def shared_server():
    with serving() as served:
        yield served


@pytest.fixture
def quick(monkeypatch):
    quicken(monkeypatch)


@pytest.fixture
def server(shared_server, quick, monkeypatch):
    return pointed(shared_server, monkeypatch)


def truth(row, settings):
    """Return what a north-aligned, upright camera sees where a query was taken."""
    return render_panorama(World(settings.seed), row["lon"], row["lat"], date=settings.day, width=WIDTH)


def assert_faces_north(row, settings=SETTINGS, least=12.0):
    """The image is the world's own view north; no other heading is as near to it."""
    seen, expected = decode(row["image"]).astype(np.float32), truth(row, settings).astype(np.float32)
    assert seen.shape == expected.shape == (WIDTH // 2, WIDTH, 3)
    shown = slice(WIDTH // 16, -WIDTH // 16)  # the poles are the same at every heading
    step = WIDTH // 128
    errors = {
        turn: float(np.abs(np.roll(seen, turn, axis=1)[shown] - expected[shown]).mean())
        for turn in range(-WIDTH // 2, WIDTH // 2, step)
    }
    assert errors[0] < least, errors[0]
    assert min(errors, key=errors.get) == 0
    others = [error for turn, error in errors.items() if abs(turn) >= 4 * step]
    assert min(others) > 1.5 * errors[0], (errors[0], min(others))


# --- builds


@pytest.mark.parametrize("imagery", IMAGERY)
@pytest.mark.parametrize("panoramas", PANORAMAS)
def test_a_build(server, tmp_path, imagery, panoramas):
    described = recipe(imagery, panoramas)
    folder = tmp_path / "out"
    report = build(described, folder)
    assert report.outcomes == {"references": {"ok": NUM_TILES}, "queries": {"ok": NUM_PANORAMAS}}
    assert report.num_covered == report.num_pairs == NUM_PANORAMAS
    assert report.num_constant == 0
    assert verification.verify(folder, decode=True) == []
    assert not [request for request in server.log if request.fault]

    dataset = open_dataset(folder, verify=True)
    references, queries = dataset.references.to_pylist(), dataset.queries.to_pylist()
    coverage = Coverage(SETTINGS)
    newest = len(coverage.releases) - 1 if imagery == "esri" else None
    for row in references:
        assert row["source"] == imagery
        assert row["captured"] == coverage.day(tile_of(row), newest).isoformat()
        assert row["provider"].startswith("Simulated S")
        assert row["release"] == ("2023-06-08" if imagery == "esri" else "")
        assert row["licence"] == "Esri Master License Agreement"
        assert row["no_redistribute"] is True
        assert row["status"] == "ok"
    if imagery == "esri-live":  # Wayback leaves some out
        assert {row["source_gsd_m"] for row in references} <= {0.15, 0.3, 0.5}

    stored = rows_of(folder)[1]
    month = panoramas.startswith("google")
    for row in queries:
        assert row["source"] == panoramas
        assert row["captured"].startswith("2023-06" if month else "2023-06-15T")
        assert row["no_redistribute"] is month
        assert (row["heading_deg"], row["area"], row["status"]) == (0.0, "here", "ok")
        assert_faces_north(stored[row["query_id"]])
    licences = {row["licence"] for row in queries}
    creators = {row["creator"] for row in queries}
    if panoramas == "panoramax":
        assert licences <= set(LICENCES)
        assert creators <= {f"Simulated City {number}" for number in (1, 2, 3)}
        by_licence = {row["creator"]: row["licence"] for row in queries}
        assert all(LICENCES[int(creator[-1]) - 1] == licence for creator, licence in by_licence.items())
    elif panoramas == "mapillary":
        assert licences == {"CC-BY-SA-4.0"}
        assert all(creator.startswith("simulated_") for creator in creators)
    else:
        assert licences == {"LicenseRef-Google-Maps-Platform-Terms"}
        assert creators == {COPYRIGHT}

    manifest = manifest_of(folder)
    assert manifest["releases"] == (["2023-06-08"] if imagery == "esri" else [])
    today = datetime.datetime.now(datetime.UTC).date()
    assert sorted(manifest["terms_accepted"]) == accepted(described)
    for terms in manifest["terms_accepted"].values():
        assert today - datetime.date.fromisoformat(terms["accepted"]) <= datetime.timedelta(days=1)
        assert terms["url"].startswith("https://")
    credits = {source["kind"]: source for source in manifest["sources"]}
    assert credits["imagery"]["attribution"].startswith("Simulated world, in the place of Esri")
    assert credits["imagery"]["attribution"] in (folder / "README.md").read_text(encoding="utf-8")
    assert credits["panoramas"]["name"] == panoramas

    before = len(server.log)
    again = tmp_path / "again"
    build(described, again)
    assert len(images(since(server, before))) >= NUM_TILES + NUM_PANORAMAS
    assert data(again) == data(folder)


def test_poses_are_put_upright(quick, monkeypatch, tmp_path):
    tilted = {"tilt_deg": 6.0, "flat": 0.0}
    settings = Settings(**{**OPTIONS, **tilted})
    with serving(**tilted) as served:
        pointed(served, monkeypatch)
        for panoramas in ("panoramax", "mapillary", "google"):
            counts, queries = fetch_queries(recipe("esri", panoramas), tmp_path / panoramas)
            assert counts == {"ok": NUM_PANORAMAS}
            upright = [row for row in queries if row["upright"]]
            assert len(upright) >= NUM_PANORAMAS // 2
            assert all(max(abs(row["source_pitch_deg"]), abs(row["source_roll_deg"])) > 0 for row in upright)
            stored = rows_of(tmp_path / panoramas)[1]
            for row in upright:
                assert_faces_north(stored[row["query_id"]], settings)


def test_release_of_the_very_bytes(server, tmp_path):
    described = recipe("esri", "panoramax", 'imagery.options.tilemap="tile"')
    build(described, tmp_path / "out")
    coverage = Coverage(SETTINGS)
    newest = len(coverage.releases) - 1
    for row in open_dataset(tmp_path / "out").references.to_pylist():
        holder = coverage.releases[coverage.holder(tile_of(row), newest)]
        assert row["release_source"] == row["captured"] == holder.day.isoformat()


def test_a_release_stays_when_there_is_a_newer_one(server, monkeypatch, tmp_path):
    later = (("2022-03-01", 64001), ("2022-09-15", 10), ("2023-02-10", 49059), ("2023-06-08", 239), ("2024-01-18", 77))
    folder, described = tmp_path / "out", recipe()
    fetch = {"accept_terms": ["esri"], "rate_per_s": 0.0}
    with pipeline.start(described, folder, **fetch):
        pass  # killed before anything was fetched, say
    build(described, tmp_path / "whole")
    with serving(releases=later) as newer:
        pointed(newer, monkeypatch)
        build(described, folder)
        assert asked(newer.log, "wayback"), "nothing was fetched after the newer release had come"
        assert {request.path.split("/tile/")[1].split("/")[0] for request in images(asked(newer.log, "wayback"))} == {
            "239"
        }
        assert 'release = "2023-06-08"' in (folder / "recipe.toml").read_text(encoding="utf-8")
        assert manifest_of(folder)["releases"] == ["2023-06-08"]
        assert data(folder) == data(tmp_path / "whole")
        build(described, tmp_path / "fresh")
        assert manifest_of(tmp_path / "fresh")["releases"] == ["2024-01-18"]
        wanted = recipe("esri", "panoramax", 'imagery.options.release="2022-12-31"')
        build(wanted, tmp_path / "old")
        assert manifest_of(tmp_path / "old")["releases"] == ["2022-09-15"]


# --- terms


@pytest.mark.parametrize(
    ("imagery", "panoramas", "given", "missing"),
    [
        ("esri", "panoramax", [], "esri"),
        ("esri-live", "mapillary", [], "esri"),
        ("esri", "google", ["esri"], "google"),
        ("esri", "google-static", ["google"], "esri"),
    ],
)
def test_nothing_is_asked_before_terms_are_accepted(server, tmp_path, imagery, panoramas, given, missing):
    before = len(server.log)
    folder = tmp_path / "out"
    with pytest.raises(TermsError, match=f"--accept-terms {missing}"):
        build(recipe(imagery, panoramas), folder, accept_terms=given)
    assert since(server, before) == []
    assert not folder.exists()


def test_terms_are_accepted_once(server, tmp_path):
    folder, described = tmp_path / "out", recipe("esri", "google")
    with pipeline.start(described, folder, accept_terms=["esri", "google"], rate_per_s=0.0):
        pass
    record = json.loads((folder / ".cvgl" / "terms.json").read_text(encoding="utf-8"))
    record["google"]["accepted"] = "2020-02-02"  # as if it had been then
    (folder / ".cvgl" / "terms.json").write_text(json.dumps(record), encoding="utf-8")
    build(described, folder, accept_terms=[])
    assert manifest_of(folder)["terms_accepted"] == record


def test_terms_of_what_is_not_fetched_are_not_asked_for(server, tmp_path):
    counts, _ = fetch_queries(recipe("esri", "panoramax"), tmp_path / "out", accept_terms=[])
    assert counts == {"ok": NUM_PANORAMAS}


# --- faults

PICTURES = "esri+wayback+panoramax+mapillary-cdn+google-static+google-tiles"
PAIRS = (("esri", "panoramax"), ("esri-live", "mapillary"), ("esri", "google"), ("esri-live", "google-static"))


def paired(pair, *overrides):
    # The simulated thumbnails are larger than the originals, so half of one would not be too small.
    return recipe(*pair, *(['panoramas.options.size="original"'] if "mapillary" in pair else []), *overrides)


class Whole:
    """What a build of two sources holds when nothing goes wrong."""

    def __init__(self, pair, folder):
        build(paired(pair), folder)
        self.data = data(folder)
        references, queries = rows_of(folder)
        self.references = references
        self.pano_ids = sorted(queries)
        self.images = {row["sha256"] for rows in (references, queries) for row in rows.values()}


@pytest.fixture(scope="session")
def whole(shared_server, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        pointed(shared_server, patch)
        patch.setenv("CVGL_STATE_DIR", str(tmp_path_factory.mktemp("state")))
        return {pair: Whole(pair, tmp_path_factory.mktemp("-".join(pair)) / "out") for pair in PAIRS}


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
@pytest.mark.parametrize(
    "faults",
    [
        {"unavailable": 0.3, "truncated": 0.3},
        {"stall": 0.5, "stall_s": 0.05},
        {"expired": 0.4},
        {"html": 0.9, "only": "esri+wayback+wayback-config+metadata"},
    ],
    ids=lambda faults: "+".join(faults),
)
def test_passing_faults_leave_no_trace(whole, quick, monkeypatch, tmp_path, pair, faults):
    if "expired" in faults and pair[1] != "mapillary":
        pytest.skip("only Mapillary's addresses expire")
    with serving(faults=Faults(**faults)) as served:
        pointed(served, monkeypatch)
        report = build(paired(pair), tmp_path / "out")
        assert report.num_failed == 0
        assert data(tmp_path / "out") == whole[pair].data
        assert verification.verify(tmp_path / "out", decode=True) == []
        met = Counter(request.fault for request in served.log if request.fault)
        assert met.total() >= 2
        assert set(met) <= set(faults)


@pytest.mark.parametrize(("pair", "share"), list(zip(PAIRS, (0.4, 0.4, 0.04, 0.03), strict=True)))
def test_a_host_is_left_alone_for_as_long_as_it_asks(whole, quick, monkeypatch, tmp_path, pair, share):
    with serving(faults=Faults(rate_limited=share, only=PICTURES)) as served:
        pointed(served, monkeypatch)
        build(paired(pair), tmp_path / "out")
        assert data(tmp_path / "out") == whole[pair].data
        limited = [request for request in served.log if request.status == 429]
        assert limited
        for refused in limited:
            again = [r.time_s for r in served.log if r.path == refused.path and r.time_s > refused.time_s]
            assert len(again) == 1, "a request was repeated in vain, or never"
            assert again[0] - refused.time_s >= 1.0


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_what_fails_for_now_is_asked_for_by_the_next_run(whole, quick, monkeypatch, tmp_path, pair):
    """Here no run tries twice: each fault ends a row, and the next run, which asks again, meets it no more."""
    monkeypatch.setitem(Http.__init__.__kwdefaults__, "max_tries", 1)
    share = 0.02 if "google" in pair[1] else 0.2
    faults = {"rate_limited": share, "unavailable": share, "truncated": share, "stall": share}
    folder, described = tmp_path / "out", paired(pair)
    with serving(faults=Faults(**faults, stall_s=0.05, retry_after_s=0)) as served:
        pointed(served, monkeypatch)
        classes, stopped = set(), []
        for _ in range(12):
            before = rows_of(folder) if (folder / ".cvgl").exists() else [{}, {}]
            number = len(served.log)
            try:
                report = build(described, folder)
            except FetchError as error:
                stopped.append(error.outcome)
                continue
            finally:
                if (folder / ".cvgl").exists():
                    after = rows_of(folder)
                    for old, new in zip(before, after, strict=True):
                        kept = [name for name, row in old.items() if row["status"] == "ok"]
                        assert all(new[name] == old[name] for name in kept)
                        classes |= {row["status"] for row in new.values()}
                    there = {str(tile_of(row)) for row in before[0].values() if row["status"] == "ok"}
                    tiles = [request.path for request in images(asked(since(served, number), "esri", "wayback"))]
                    assert not [path for path in tiles if there & {f"{z}/{x}/{y}" for z, y, x in [place(path)]}]
            if report.num_failed == 0:
                break
        assert all(outcome.is_transient for outcome in stopped)
        for name, row in rows_of(folder)[0].items():
            expected = whole[pair].references[name]
            assert row["sha256"] == expected["sha256"]
            # A capture date that could not be had at the time is unknown for good, and never another.
            assert row["captured"] in ("", expected["captured"])
        ours = {name: part for name, part in data(folder).items() if "references" not in name}
        assert ours == {name: part for name, part in whole[pair].data.items() if "references" not in name}
        assert classes >= {"ok", "server_error"}
        assert classes <= {"ok", "server_error", "truncated", "connection", "rate_limited"}


def place(path):
    """Return zoom, row and column of a tile's address."""
    return path.partition("?")[0].split("/")[-3:]


CLASSES = {"ok", "no_imagery", "not_found", "wrong_size", "wrong_type", "decode_error", "server_error"}


@pytest.mark.parametrize(("pair", "share"), list(zip(PAIRS, (0.18, 0.18, 0.012, 0.03), strict=True)))
def test_what_fails_for_good_is_a_row_and_never_an_image(whole, quick, monkeypatch, tmp_path, pair, share):
    faults = Faults(not_found=share, placeholder=share, wrong_size=share, error_in_200=share, only=PICTURES)
    listed = tmp_path / "ids.txt"
    listed.write_text("\n".join(whole[pair].pano_ids), encoding="utf-8")
    folder, described = tmp_path / "out", paired(pair, f'panoramas.pano_ids="{listed}"')
    with serving(faults=faults) as served:
        pointed(served, monkeypatch)
        build(described, folder)
        assert verification.verify(folder, decode=True) == []
        references, queries = rows_of(folder)
        assert len(references) == NUM_TILES
        assert sorted(queries) == whole[pair].pano_ids
        rows = [*references.values(), *queries.values()]
        statuses = Counter(row["status"] for row in rows)
        assert set(statuses) <= CLASSES
        assert {row["sha256"] for row in rows if row["status"] == "ok"} <= whole[pair].images
        assert sim.PLACEHOLDER_SHA256 not in {row["sha256"] for row in rows}
        assert all(row["error"] and row["image"] is None for row in rows if row["status"] != "ok")
        failures = pq.read_table(folder / "data" / "failures").to_pylist()
        assert sorted((row["id"], row["status"]) for row in failures) == sorted(
            (row.get("reference_id") or row["query_id"], row["status"]) for row in rows if row["status"] != "ok"
        )

        number, first = len(served.log), data(folder)
        build(described, folder)
        again = since(served, number)
        transient = {str(tile_of(row)) for row in references.values() if row["status"] == "server_error"}
        tiles = {"{0}/{2}/{1}".format(*place(request.path)) for request in images(asked(again, "esri", "wayback"))}
        assert tiles == transient
        if "server_error" not in {row["status"] for row in queries.values()}:
            assert not asked(again, "panoramax", "mapillary-graph", "mapillary-cdn", "google-tiles", "google-static")
        assert data(folder) == first

        number = len(served.log)
        build(described, folder, retry_failed=True)
        failed = {str(tile_of(row)) for row in references.values() if row["status"] != "ok"}
        tiles = images(asked(since(served, number), "esri", "wayback"))
        assert {"{0}/{2}/{1}".format(*place(request.path)) for request in tiles} == failed
        if any(row["status"] != "ok" for row in queries.values()):
            assert not {r.provider for r in since(served, number)} <= {"esri", "wayback", "metadata", "wayback-config"}


@pytest.mark.parametrize("panoramas", PANORAMAS)
def test_a_page_in_the_place_of_data_is_the_error_of_its_row(whole, quick, monkeypatch, tmp_path, panoramas):
    pano_ids = next(found.pano_ids for pair, found in whole.items() if pair[1] == panoramas)
    listed = tmp_path / "ids.txt"
    listed.write_text("\n".join(pano_ids), encoding="utf-8")
    described = recipe("esri-live", panoramas, f'panoramas.pano_ids="{listed}"')
    with serving(faults=Faults(html=0.6)) as served:
        pointed(served, monkeypatch)
        with contextlib.suppress(FetchError):  # raised when there is not one without
            fetch_queries(described, tmp_path / "out")
        rows = rows_of(tmp_path / "out")[1]
        assert sorted(rows) == pano_ids
        assert {row["status"] for row in rows.values()} in ({"wrong_type"}, {"ok", "wrong_type"})
        assert [request for request in served.log if request.fault == "html"]
        for _ in range(3):  # Google has two pages on the way to a panorama, and a session before them
            with contextlib.suppress(FetchError):
                counts, _ = fetch_queries(described, tmp_path / "out", retry_failed=True)
        assert counts == {"ok": len(pano_ids)}
