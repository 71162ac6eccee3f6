"""Lazy name tables."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint

import pytest

from cvgl_data import registry
from cvgl_data.errors import UnknownNameError
from cvgl_data.registry import Registry, did_you_mean


@pytest.fixture
def table() -> Registry:
    return Registry("shape", {"circle": "math:pi", "square": "colorsys:rgb_to_hls"}, group="cvgl.test_shapes")


def test_names_resolve_at_first_use(table, monkeypatch):
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    assert list(table) == ["circle", "square"]
    assert "circle" in table
    assert "oval" not in table
    assert 3 not in table
    assert "colorsys" not in sys.modules
    assert table.load("square").__name__ == "rgb_to_hls"
    assert "colorsys" in sys.modules


def test_unknown_names_suggest_the_nearest(table):
    with pytest.raises(UnknownNameError, match="unknown shape 'circel'; did you mean 'circle'"):
        table.load("circel")
    with pytest.raises(LookupError, match="unknown shape 'x'; known: circle, square"):
        table.load("x")


def test_third_parties_register_by_entry_point(table, monkeypatch):
    point = EntryPoint("hexagon", "math:tau", "cvgl.test_shapes")
    monkeypatch.setattr(registry, "entry_points", lambda group: [point] if group == "cvgl.test_shapes" else [])
    assert list(table) == ["circle", "hexagon", "square"]
    assert "hexagon" in table
    assert table.load("hexagon") == pytest.approx(6.283185)


def test_did_you_mean_ignores_case():
    assert did_you_mean("ESRI", ["esri", "wayback"]) == "; did you mean 'esri'?"
