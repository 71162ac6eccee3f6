from __future__ import annotations

import io
import re
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from test_statistics import FAR, dataset
from toy_tables import ORIGIN_X, ORIGIN_Y, ZOOM

from cvgl_data.errors import UnknownNameError, WorkspaceError
from cvgl_data.geo import gsd_m, lonlat_from_pixel
from cvgl_data.report import figures
from cvgl_data.report.placement import placed
from cvgl_data.statistics import ECDF_AT, statistics, theory


def renamed(data, old, new):
    """Return the dataset with another name for one of its areas."""
    tables = {}
    for name in ("references", "queries"):
        table = getattr(data, name)
        areas = [new if area == old else area for area in table["area"].to_pylist()]
        tables[name] = table.set_column(table.schema.get_field_index("area"), "area", pa.array(areas))
    return replace(data, **tables)


def test_all_figures_are_written_under_names_that_are_safe(tmp_path):
    data = renamed(renamed(dataset(num=60), "west", "../$up/we st"), "east", "../$up/we_st")
    data = renamed(data, "../$up/we_st", "..|$up\\we st")
    data = replace(data, queries=data.queries.slice(0, 90))
    paths = figures.write_figures(data, tmp_path / "out", ("png",))
    assert {path.parent for path in paths} == {tmp_path / "out"}
    names = [path.name for path in paths]
    assert len(set(names)) == len(names) == len(list((tmp_path / "out").iterdir()))
    assert {"captured-queries.png", "captured-references.png", "decentrality-all.png"} < set(names)
    assert {"map-up-we-st.png", "map-up-we-st-2.png"} < set(names)
    assert {"density-split-test.png", "queries-per-reference-split-train.png"} < set(names)
    for path in paths:
        with Image.open(path) as image:
            assert len(np.unique(np.asarray(image.convert("L")))) > 20, f"{path.name} is blank"
            assert "Software" not in image.info


def test_equal_data_gives_equal_bytes_whatever_the_user_has_set(tmp_path):
    import matplotlib

    data = dataset(num=60)
    group = statistics(data).group()
    formats = ("svg", "png", "pdf")
    first = figures.draw_as(lambda: figures.decentrality_figure(group), formats)
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "black", "svg.hashsalt": None}):
        before = dict(matplotlib.rcParams)
        again = figures.draw_as(lambda: figures.decentrality_figure(group), formats)
        assert dict(matplotlib.rcParams) == before
    assert first == again
    assert first[0].startswith(b"<?xml")
    assert not re.search(rb"<dc:date|CreationDate|\d{4}-\d\d-\d\dT", first[0] + first[2])
    ElementTree.fromstring(first[0])
    maps = [figures.draw_as(lambda: figures.map_figure(data, "west"), ("svg",)) for _ in range(2)]
    assert maps[0] == maps[1]


def test_theory_is_drawn_only_over_a_regular_grid():
    group = statistics(dataset(stride=128, num=100)).group()
    figure = figures.decentrality_figure(group)
    lines = {line.get_label(): line for line in figure.axes[1].get_lines()}
    assert lines["positives"].get_ydata().tolist() == list(group.decentrality.ecdf)
    assert lines["positives"].get_xdata().tolist() == ECDF_AT.tolist()
    uniform = lines["uniform, stride 0.5 L"]
    assert uniform.get_ydata() == pytest.approx(theory(0.5).cdf(uniform.get_xdata()))
    assert lines["all covering pairs"].get_ydata().tolist() == list(group.covering.ecdf)
    uniform_l2 = figure.axes[3].get_lines()[2]
    assert uniform_l2.get_ydata() == pytest.approx(theory(0.5).cdf_l2(uniform_l2.get_xdata()))

    irregular = figures.decentrality_figure(replace(group, stride_ratio=None))
    assert not any("uniform" in str(line.get_label()) for axes in irregular.axes for line in axes.get_lines())


def test_few_queries_are_shown_in_fewer_bins():
    counts = np.zeros((20, 20))
    counts[0, 0], counts[19, 10] = 3, 5
    coarse = figures.coarsened(counts)
    assert coarse.shape == (5, 5)
    assert (coarse[0, 0], coarse[4, 2], coarse.sum()) == (3, 5, 8)
    assert figures.coarsened(np.full((20, 20), 4.0)).shape == (20, 20)
    assert figures.coarsened(np.full((20, 20), 1.0)).shape == (10, 10)


@pytest.mark.parametrize(
    ("most", "length"), [(1, 1), (1.99, 1), (2, 2), (4.9, 2), (5, 5), (99, 50), (100, 100), (2600, 2000)]
)
def test_scale_bars_have_round_lengths(most, length):
    assert figures.round_length(most) == length


def test_map_is_to_scale():
    data = dataset(num=60)
    axes = figures.map_figure(data, "east").axes[0]
    lat = data.references["lat"].to_numpy().mean()
    cells = 6  # of 256 px
    assert axes.get_xlim()[1] == pytest.approx(cells * 256 * gsd_m(lat, ZOOM), rel=1e-4)
    dots = axes.collections[1]
    assert len(dots.get_offsets()) == 30
    assert axes.get_aspect() == 1.0
    captions = [text.get_text() for text in axes.texts]
    assert captions == ["100 m"]
    bar = axes.get_lines()[-1].get_xdata()
    assert bar[1] - bar[0] == pytest.approx(100)


def test_placement_is_in_world_units_and_in_one_piece():
    data = dataset(num=60)
    place = placed(data, "east")
    world = 256 * 2**ZOOM
    assert place.edges == pytest.approx(
        [(ORIGIN_X + FAR) / world, ORIGIN_Y / world, (ORIGIN_X + FAR + 6 * 256) / world, (ORIGIN_Y + 5 * 256) / world]
    )
    assert set(data.queries["area"].take(pa.array(place.query_rows)).to_pylist()) == {"east"}
    assert place.num_queries.sum() == 30
    assert place.ground_m == pytest.approx(float(gsd_m(data.references["lat"].to_numpy().mean(), 0)) * 256, rel=1e-4)
    # Half of the windows east of the antimeridian: they go on where the others end.
    x = data.references["x"].to_numpy().copy()
    x = np.where(x >= x.max() - 256, 0, world - 256)
    references = data.references.set_column(data.references.schema.get_field_index("x"), "x", pa.array(x))
    wrapped = placed(replace(data, references=references), "east")
    assert wrapped.west.min() == pytest.approx(1 - 256 / world)
    assert wrapped.west.max() == pytest.approx(1.0)


def test_queries_without_a_position_are_not_drawn():
    data = dataset(num=60)
    lon = data.queries["lon"].to_pylist()
    lon[data.queries["area"].to_pylist().index("east")] = None
    index = data.queries.schema.get_field_index("lon")
    data = replace(data, queries=data.queries.set_column(index, "lon", pa.array(lon, pa.float64())))
    assert len(placed(data, "east").query_x) == 29


def test_captured_figure_shows_shares_and_what_is_unknown():
    data = dataset(num=8)
    dates = ["2019-02-01", "2021", "", "2021-11"] * 3
    index = data.queries.schema.get_field_index("captured")
    data = replace(data, queries=data.queries.set_column(index, "captured", pa.array(dates)))
    figure = figures.captured_figure(statistics(data), "query")
    months, years = figure.axes
    assert [label.get_text() for label in months.get_xticklabels()][-1] == "unknown"
    assert [label.get_text() for label in years.get_xticklabels()] == ["2019", "2020", "2021", "unknown"]
    assert [label.get_text() for label in months.get_yticklabels()] == ["east", "west"]
    assert sorted(text.get_text() for text in years.texts) == ["25", "25", "25", "25", "50", "50"]


def test_wrong_formats_and_folders_are_said(tmp_path):
    with pytest.raises(UnknownNameError, match="unknown figure format 'jpg'"):
        figures.write_figures(dataset(num=4), tmp_path, ("jpg",))
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkspaceError):
        figures.write_figures(dataset(num=4), tmp_path / "file" / "out", ("png",))


def test_figures_of_a_paper_have_no_raster_text():
    group = statistics(dataset(num=60)).group()
    [svg] = figures.draw_as(lambda: figures.queries_per_reference_figure(group), ("svg",))
    assert b"<image" not in svg
    [png] = figures.draw_as(lambda: figures.density_figure(group), ("png",))
    with Image.open(io.BytesIO(png)) as image:
        assert image.info["dpi"] == pytest.approx((200, 200), abs=0.1)


def test_lonlat_of_the_toy_is_where_placement_says():
    data = dataset(num=60)
    place = placed(data, "west")
    lon, lat = lonlat_from_pixel(place.query_x * 256, place.query_y * 256, 0)
    rows = data.queries.take(pa.array(place.query_rows))
    assert lon == pytest.approx(rows["lon"].to_numpy())
    assert lat == pytest.approx(rows["lat"].to_numpy())
