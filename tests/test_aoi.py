"""Areas of interest: the catalogue, boxes, files of every kind, and what is refused."""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path

import geopandas
import numpy as np
import pyproj
import pytest
import shapely
from hypothesis import assume, given
from hypothesis import strategies as st
from shapely.geometry import GeometryCollection, LineString, MultiPolygon, Point, Polygon, box
from shapely.geometry.polygon import orient

from cvgl_data.aoi import AreaOfInterest
from cvgl_data.aoi.cities import catalog, find_city
from cvgl_data.errors import AreaError, UnknownNameError
from cvgl_data.geo import wrap_deg
from cvgl_data.types import BBox

# Names as the issue lists them, and the datasets that use them as the papers and repositories list them.
CV_CITIES = {
    "barcelona", "cape-town", "los-angeles", "manila", "melbourne", "mexico-city", "new-york", "paris", "santiago",
    "tokyo", "taipei", "singapore", "london", "seattle", "rio-de-janeiro", "sydney",
}  # fmt: skip
DRESS = {"chicago", "johannesburg", "london", "rio-de-janeiro", "sydney", "taipei", "tokyo", "vancouver"}
VIGOR = {"new-york", "seattle", "san-francisco", "chicago"}


def frame(geometry, crs="EPSG:4326"):
    geometries = geometry if isinstance(geometry, list) else [geometry]
    return geopandas.GeoDataFrame({"id": range(len(geometries))}, geometry=geometries, crs=crs)


def write(path: Path, geometry, crs="EPSG:4326") -> Path:
    with warnings.catch_warnings():  # pyogrio warns about files without a CRS
        warnings.simplefilter("ignore")
        if path.suffix == ".parquet":
            frame(geometry, crs).to_parquet(path)
        else:
            frame(geometry, crs).to_file(path)
    return path


class TestCatalog:
    def test_lists_the_cities_of_the_literature(self):
        assert {city.key for city in catalog()} == CV_CITIES | DRESS | VIGOR
        assert len(catalog()) == 20
        for dataset, keys in {"CV-Cities": CV_CITIES, "DReSS": DRESS, "VIGOR": VIGOR}.items():
            assert {city.key for city in catalog() if dataset in city.datasets} == keys

    @pytest.mark.parametrize("city", catalog(), ids=lambda city: city.key)
    def test_every_city_is_a_plausible_area(self, city):
        area = AreaOfInterest.from_city(city.key)
        assert area.name == city.key
        assert area.geometry.is_valid
        assert area.contains(*city.center)
        assert 100 < area.area_km2 < 1600
        assert all((city.name, city.country, city.boundary, area.source, area.licence))

    @pytest.mark.parametrize(
        ("key", "area_km2"),  # as published with the polygons, on a sphere
        [("barcelona", 101.2), ("london", 1561.1), ("seattle", 215.1), ("taipei", 268.9), ("rio-de-janeiro", 1184.4)],
    )
    def test_areas_are_the_published_ones(self, key, area_km2):
        assert AreaOfInterest.from_city(key).area_km2 == pytest.approx(area_km2, rel=0.01)

    @pytest.mark.parametrize("key", ["cape-town", "johannesburg", "melbourne", "santiago", "singapore", "tokyo"])
    def test_urban_areas_stay_in_their_25_km_square(self, key):
        city, bounds = find_city(key), AreaOfInterest.from_city(key).bounds
        assert max(bounds.north - city.center.lat, city.center.lat - bounds.south) <= 12.5 / 111.19 + 1e-6

    @pytest.mark.parametrize(
        "name", ["Rio de Janeiro", "rio_de_janeiro", "rio", "RIO", "rio-de-janeiro", "Rio de Janéiro", "RioDeJaneiro"]
    )
    def test_spelling_does_not_matter(self, name):
        assert AreaOfInterest.from_city(name).name == "rio-de-janeiro"

    def test_folder_names_of_published_datasets(self):
        names = ["captown", "maynila", "mexico", "newyork", "losangeles", "SanFrancisco", "NewYork"]
        keys = ["cape-town", "manila", "mexico-city", "new-york", "los-angeles", "san-francisco", "new-york"]
        assert [find_city(name).key for name in names] == keys

    @pytest.mark.parametrize(("name", "meant"), [("seatle", "seattle"), ("Mexiko City", "mexico-city")])
    def test_an_unknown_city_suggests_the_nearest(self, name, meant):
        with pytest.raises(UnknownNameError, match=f"unknown city '{name}'; did you mean '{meant}'"):
            AreaOfInterest.from_city(name)

    def test_a_name_like_no_other_lists_all(self):
        with pytest.raises(UnknownNameError, match=r"known: barcelona, .*vancouver"):
            AreaOfInterest.from_city("qqq")


class TestBox:
    def test_bounds_come_back(self):
        area = AreaOfInterest.from_bbox(-122.4, 47.5, -122.2, 47.7, name="mine")
        assert (area.name, area.bounds) == ("mine", BBox(-122.4, 47.5, -122.2, 47.7))

    def test_area_of_a_degree_at_the_equator(self):
        assert AreaOfInterest.from_bbox(0, 0, 1, 1).area_km2 == pytest.approx(12308.8, abs=1.0)

    def test_across_the_antimeridian(self):
        area = AreaOfInterest.from_bbox(170, -20, -170, -10)
        assert area.bounds == BBox(170, -20, -170, -10)
        assert area.area_km2 == pytest.approx(AreaOfInterest.from_bbox(-10, -20, 10, -10).area_km2)
        assert area.contains([175, -175, 180, -180, 185, 0, 160], [-15] * 7).tolist() == [True] * 5 + [False] * 2

    def test_wide_boxes_are_not_taken_the_other_way_round(self):
        assert AreaOfInterest.from_bbox(-170, -20, 170, -10).bounds == BBox(-170, -20, 170, -10)
        world = AreaOfInterest.from_bbox(-180, -85, 180, 85)
        assert world.bounds == BBox(-180, -85, 180, 85)
        assert world.area_km2 == pytest.approx(510_065_621.7 - 1_950_000, rel=1e-3)  # the ellipsoid less two caps

    @pytest.mark.parametrize(
        ("bbox", "message"),
        [
            ((1, 2, 1, 3), "is empty"),
            ((1, 3, 2, 2), "is empty .* order is west, south, east, north"),
            ((float("nan"), 0, 1, 1), "is empty"),
            ((0, 80, 1, 86), "latitude 86.0000, but Web Mercator ends at 85.0511"),
            ((0, -90, 1, -80), "latitude -90.0000"),
            ((170, 0, 190, 1), "longitude beyond 180 .* west > east"),
        ],
    )
    def test_refused(self, bbox, message):
        with pytest.raises(AreaError, match=message):
            AreaOfInterest.from_bbox(*bbox)


class TestClip:
    def test_keeps_what_is_inside(self):
        area = AreaOfInterest.from_city("seattle")
        part = area.clip(BBox(-122.35, 47.60, -122.33, 47.62), name="core")
        assert part.name == "core"
        assert part.bounds == pytest.approx((-122.35, 47.60, -122.33, 47.62), abs=0.02)
        assert 0 < part.area_km2 < 3.5
        assert (part.source, part.licence) == (area.source, area.licence)
        assert area.clip(BBox(-180, -90, 180, 90)).area_km2 == pytest.approx(area.area_km2)

    def test_across_the_antimeridian(self):
        area = AreaOfInterest.from_bbox(170, -20, -170, -10)
        assert area.clip(BBox(179, -15, -179, -14)).bounds == BBox(179, -15, -179, -14)
        assert area.clip(BBox(171, -15, 172, -14)).bounds == BBox(171, -15, 172, -14)

    def test_nothing_left(self):
        with pytest.raises(AreaError, match=r"area 'seattle' .* has nothing inside the clip box"):
            AreaOfInterest.from_city("seattle").clip(BBox(2, 41, 3, 42))
        edge = AreaOfInterest.from_bbox(0, 0, 1, 1)
        with pytest.raises(AreaError, match="nothing inside"):
            edge.clip(BBox(1, 0, 2, 1))


class TestFiles:
    def test_the_real_shapefile_is_the_catalogs_city(self, golden):
        shapefile = AreaOfInterest.from_file(golden / "areas/barcelona_shapefile/barcelona.shp")
        city = AreaOfInterest.from_city("barcelona")
        assert (shapefile.name, shapefile.source) == ("barcelona", "barcelona.shp")
        np.testing.assert_allclose(shapefile.bounds, city.bounds, atol=2e-6)
        assert shapefile.area_km2 == pytest.approx(101.704973852, rel=1e-3)  # its own AREA attribute, in UTM
        assert shapely.symmetric_difference(shapefile.geometry, city.geometry).area < 1e-3 * city.geometry.area

    def test_a_folder_with_a_shapefile(self, golden):
        assert AreaOfInterest.from_file(golden / "areas/barcelona_shapefile", name="bcn").area_km2 > 100

    def test_a_hand_drawn_geojson(self, golden):
        area = AreaOfInterest.from_file(golden / "areas/seattle_downtown.geojson")
        assert area.name == "seattle_downtown"
        assert area.contains(-122.335, 47.608)
        assert area.area_km2 == pytest.approx(16.0, abs=0.5)

    @pytest.mark.parametrize("ending", ["geojson", "gpkg", "shp", "kml", "fgb", "parquet"])
    def test_every_format(self, tmp_path, ending):
        ring = Polygon(
            [(2.1, 41.3), (2.2, 41.3), (2.2, 41.4), (2.1, 41.4)], [[(2.14, 41.34), (2.14, 41.36), (2.16, 41.35)]]
        )
        area = AreaOfInterest.from_file(write(tmp_path / f"box.{ending}", ring))
        assert area.name == "box"
        assert area.geometry.equals_exact(ring, 1e-9, normalize=True)
        assert area.contains([2.12, 2.147, 2.3], [41.32, 41.35, 41.35]).tolist() == [True, False, False]

    @pytest.mark.parametrize("crs", ["EPSG:3857", "EPSG:25831", "EPSG:32631", "EPSG:2154", "EPSG:4258", "EPSG:2062"])
    def test_any_crs(self, tmp_path, crs):
        degrees = box(2.1, 41.3, 2.2, 41.4)
        projected = frame(shapely.segmentize(degrees, 0.001)).to_crs(crs).geometry.iloc[0]
        area = AreaOfInterest.from_file(write(tmp_path / "box.gpkg", projected, crs))
        assert shapely.symmetric_difference(area.geometry, degrees).area < 1e-5 * degrees.area

    def test_edges_that_are_straight_in_a_projection_are_followed(self, tmp_path):
        utm = box(300_000, 4_600_000, 700_000, 4_900_000)
        area = AreaOfInterest.from_file(write(tmp_path / "box.gpkg", utm, "EPSG:32631"))
        lon, lat = frame(Point(500_000, 4_600_000 + 100), "EPSG:32631").to_crs("EPSG:4326").geometry.iloc[0].coords[0]
        assert area.contains([lon, lon], [lat, lat - 0.002]).tolist() == [True, False]  # 3 km off with four corners

    def test_features_and_multipolygons_become_one_area(self, tmp_path):
        parts = [box(0, 0, 2, 2), MultiPolygon([box(1, 1, 3, 3), box(5, 5, 6, 6)]), None, Polygon()]
        area = AreaOfInterest.from_file(write(tmp_path / "parts.gpkg", parts))
        assert area.geometry.equals(shapely.union_all([box(0, 0, 2, 2), box(1, 1, 3, 3), box(5, 5, 6, 6)]))

    def test_layers_become_one_area(self, tmp_path, caplog):
        path = tmp_path / "layers.gpkg"
        frame(box(0, 0, 1, 1)).to_file(path, layer="west")
        frame(box(1, 0, 2, 1)).to_file(path, layer="east")
        frame(Point(9, 9)).to_file(path, layer="places")
        assert AreaOfInterest.from_file(path).bounds == BBox(0, 0, 2, 1)
        assert "west, east become one area" in caplog.text

    def test_heights_are_dropped(self, tmp_path):
        area = AreaOfInterest.from_file(write(tmp_path / "z.gpkg", shapely.force_3d(box(0, 0, 1, 1), 5.0)))
        assert not area.geometry.has_z

    def test_what_is_no_polygon_is_left_out(self, tmp_path, caplog):
        mixed = [box(0, 0, 1, 1), Point(5, 5), LineString([(6, 6), (7, 7)])]
        assert AreaOfInterest.from_file(write(tmp_path / "mixed.geojson", mixed)).bounds == BBox(0, 0, 1, 1)
        assert "left out what is no polygon: LineString, Point" in caplog.text

    def test_a_file_without_crs_is_degrees_if_it_can_be(self, tmp_path, caplog):
        area = AreaOfInterest.from_file(write(tmp_path / "plain.shp", box(2.1, 41.3, 2.2, 41.4), None))
        assert area.bounds == BBox(2.1, 41.3, 2.2, 41.4)
        assert "has no CRS; taken as lon/lat" in caplog.text

    def test_a_file_without_crs_in_meters(self, golden, tmp_path):
        for ending in ("shp", "shx", "dbf"):
            source = golden / f"areas/barcelona_shapefile/barcelona.{ending}"
            (tmp_path / f"bcn.{ending}").write_bytes(source.read_bytes())
        with pytest.raises(AreaError, match=r"bcn.shp' has no CRS and its coordinates are not degrees .*\.prj"):
            AreaOfInterest.from_file(tmp_path / "bcn.shp")

    def test_a_geojson_in_meters(self, tmp_path):
        path = tmp_path / "meters.geojson"
        path.write_text(shapely.to_geojson(box(430_000, 4_580_000, 431_000, 4_581_000)))
        with pytest.raises(AreaError, match="area 'meters' has coordinates that are not degrees"):
            AreaOfInterest.from_file(path)

    def test_no_such_file(self, tmp_path):
        with pytest.raises(AreaError, match=r"no area file '.*nowhere.geojson'"):
            AreaOfInterest.from_file(tmp_path / "nowhere.geojson")

    @pytest.mark.parametrize("ending", ["geojson", "gpkg", "shp", "parquet", "txt"])
    def test_unreadable_files(self, tmp_path, ending):
        path = tmp_path / f"broken.{ending}"
        path.write_bytes(b"{ this is no vector file")
        with pytest.raises(AreaError, match=f"broken.{ending}' cannot be read as vector data"):
            AreaOfInterest.from_file(path)

    def test_a_table_without_geometry(self, tmp_path):
        path = tmp_path / "table.csv"
        path.write_text("a,b\n1,2\n")
        with pytest.raises(AreaError, match="holds no polygons, only no geometry"):
            AreaOfInterest.from_file(path)

    @pytest.mark.parametrize("ending", ["geojson", "gpkg", "shp"])
    def test_points_are_no_area(self, tmp_path, ending):
        with pytest.raises(AreaError, match=r"only.* Point"):
            AreaOfInterest.from_file(write(tmp_path / f"points.{ending}", [Point(1, 2), Point(2, 3)]))

    def test_no_features(self, tmp_path):
        path = tmp_path / "none.geojson"
        path.write_text(json.dumps({"type": "FeatureCollection", "features": []}))
        with pytest.raises(AreaError, match=r"is empty|holds no polygons"):
            AreaOfInterest.from_file(path)

    def test_a_projected_area_across_the_antimeridian(self, tmp_path):
        degrees = shapely.segmentize(box(177, -19, 183, -16), 0.05)
        fiji = frame(degrees).to_crs("EPSG:3832").geometry.iloc[0]
        area = AreaOfInterest.from_file(write(tmp_path / "fiji.gpkg", fiji, "EPSG:3832"))
        assert area.bounds == pytest.approx((177, -19, -177, -16), abs=1e-4)


class TestGeometry:
    def test_a_bow_tie_is_repaired(self, caplog):
        area = AreaOfInterest.from_geometry(Polygon([(0, 0), (2, 2), (2, 0), (0, 2)]), "bow")
        assert area.geometry.is_valid
        assert area.geometry.area == pytest.approx(2.0)
        assert "area 'bow' has an invalid polygon, which was repaired: Self-intersection" in caplog.text

    def test_a_hole_on_the_edge_stays_a_hole(self):
        shell = [(0, 0), (10, 0), (10, 10), (0, 10)]
        area = AreaOfInterest.from_geometry(Polygon(shell, [[(2, 0), (4, 0), (3, 3)]]), "notch")
        assert area.geometry.area == pytest.approx(97.0)

    def test_overlapping_members_of_a_multipolygon_are_united(self):
        area = AreaOfInterest.from_geometry(MultiPolygon([box(0, 0, 2, 2), box(1, 0, 3, 2)]), "overlap")
        assert area.geometry.equals(box(0, 0, 3, 2))

    @pytest.mark.parametrize(
        ("geometry", "message"),
        [
            (Polygon([(0, 0), (1, 1), (2, 2)]), "invalid polygon without an area"),
            (Polygon(), "is empty"),
            (GeometryCollection([Point(0, 0)]), "holds only Point"),
            (None, "is empty"),
            (box(0, 0, np.inf, 1), "not finite"),
            (box(0, 80, 1, 85.06), "latitude 85.0600"),
            (box(400, 0, 401, 1), "not degrees"),
            (Polygon([(-120, 70), (0, 70), (120, 70)]), "goes round a pole"),
        ],
    )
    def test_refused(self, geometry, message):
        with pytest.raises(AreaError, match=f"area 'bad' .*{message}"):
            AreaOfInterest.from_geometry(geometry, "bad")

    def test_an_edge_over_180_degrees_crosses_the_antimeridian(self):
        ring = [(179, 0), (-179, 0), (-179, 1), (179, 1)]
        hole = [(179.5, 0.4), (179.5, 0.6), (-179.5, 0.5)]
        area = AreaOfInterest.from_geometry(Polygon(ring, [hole]), "fiji")
        assert area.bounds == BBox(179, 0, -179, 1)
        assert area.geometry.area == pytest.approx(2 - 0.1)
        assert area.contains([179.2, 179.7, -179.8], [0.5] * 3).tolist() == [True, False, False]

    def test_longitudes_beyond_180_are_wrapped(self):
        area = AreaOfInterest.from_geometry(box(190, 0, 195, 1), "east")
        assert area.bounds == BBox(-170, 0, -165, 1)
        assert AreaOfInterest.from_geometry(box(179, 0, 182, 1), "both").bounds == BBox(179, 0, -178, 1)

    def test_a_band_round_the_world(self):
        assert AreaOfInterest.from_geometry(box(-180, 0, 180, 10), "band").geometry.area == pytest.approx(3600)

    def test_two_parts_far_from_the_antimeridian_do_not_cross_it(self):
        area = AreaOfInterest.from_geometry(MultiPolygon([box(-122, 47, -121, 48), box(139, 35, 140, 36)]), "two")
        assert area.bounds == BBox(-122, 35, 140, 48)

    def test_areas_are_values(self):
        assert AreaOfInterest.from_bbox(0, 0, 1, 1) == AreaOfInterest.from_bbox(0, 0, 1, 1)
        with pytest.raises(AttributeError):
            AreaOfInterest.from_bbox(0, 0, 1, 1).name = "other"

    def test_areas_are_geodesic(self):
        """Oracle: pyproj's geodesic area, where it applies."""
        for key in ("london", "santiago", "singapore"):
            area = AreaOfInterest.from_city(key)
            parts = shapely.get_parts(shapely.segmentize(area.geometry, 0.005))
            theirs = sum(pyproj.Geod(ellps="WGS84").geometry_area_perimeter(orient(part))[0] for part in parts)
            assert area.area_km2 == pytest.approx(theirs / 1e6, rel=1e-5)

    @given(st.floats(-180, 180), st.floats(-80, 80), st.floats(0.01, 100), st.floats(0.01, 4))
    def test_wherever_a_box_is_it_has_the_same_area_and_holds_its_center(self, west, south, width, height):
        east = west + width
        wrapped = east - 360 if east > 180 else east
        assume(wrapped != west)
        area = AreaOfInterest.from_bbox(west, south, wrapped, south + height)
        here = AreaOfInterest.from_bbox(0, south, width, south + height)
        assert area.area_km2 == pytest.approx(here.area_km2, rel=1e-6)
        assert area.contains(west + width / 2, south + height / 2)
        assert not area.contains(west + width / 2, south - height)
        assert np.max(np.abs(wrap_deg(np.subtract(area.bounds, (west, south, wrapped, south + height))))) < 1e-9
        assert -180 <= area.geometry.bounds[0] <= area.geometry.bounds[2] <= 180


def test_importing_and_reading_is_quiet(caplog):
    with caplog.at_level(logging.INFO):
        AreaOfInterest.from_city("london")
    assert not caplog.records
