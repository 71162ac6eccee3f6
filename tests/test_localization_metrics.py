import json
import math

import numpy as np
import pytest

from cvgl_data.geo import distance_m, pixel_from_lonlat
from cvgl_models.localization.metrics import (
    Poses,
    PoseTruth,
    along_and_across,
    angle_between_deg,
    calibration,
    errors_m,
    localization_report,
    measures,
)
from cvgl_models.metrics import QUARTERS


def truth_of(xy_m, *, yaw_deg=0.0, heading_deg=0.0, side_m=100.0, area="a"):
    xy_m = np.asarray(xy_m, np.float64)
    num = len(xy_m)
    return PoseTruth(
        xy_m=xy_m,
        yaw_deg=np.full(num, yaw_deg),
        heading_deg=np.full(num, heading_deg),
        side_m=np.full(num, side_m),
        area=np.full(num, area),
    )


def poses_of(xy_m, *, yaw_deg=0.0, radius95_m=1.0, log_density=0.0):
    xy_m = np.asarray(xy_m, np.float64)
    num = len(xy_m)
    return Poses(
        xy_m=xy_m,
        yaw_deg=np.full(num, yaw_deg),
        radius95_m=np.full(num, radius95_m),
        log_density=np.full(num, log_density),
    )


# error (east, north) and heading, with what is ahead and to the right; the first one is published code's mistake
@pytest.mark.parametrize(
    ("east", "north", "heading_deg", "ahead", "right"),
    [
        (7.0, -7.0, 30.0, -2.562178, 9.562178),
        (0.0, 1.0, 0.0, 1.0, 0.0),
        (1.0, 0.0, 0.0, 0.0, 1.0),
        (1.0, 0.0, 90.0, 1.0, 0.0),
        (0.0, 1.0, 90.0, 0.0, -1.0),
        (0.0, 1.0, 180.0, -1.0, 0.0),
        (1.0, 0.0, 180.0, 0.0, -1.0),
        (1.0, 0.0, 270.0, -1.0, 0.0),
        (0.0, 1.0, 270.0, 0.0, 1.0),
        (2.0, 2.0, 45.0, 2 * math.sqrt(2), 0.0),
        (2.0, -2.0, 45.0, 0.0, 2 * math.sqrt(2)),
    ],
)
def test_ahead_and_to_the_right(east, north, heading_deg, ahead, right):
    assert along_and_across(east, north, heading_deg) == pytest.approx((ahead, right), abs=1e-6)


def test_along_and_across_in_all_octants():
    heading = np.arange(0.0, 360.0, 7.5)
    for bearing in np.arange(22.5, 360, 45):
        ahead, right = along_and_across(math.sin(math.radians(bearing)), math.cos(math.radians(bearing)), heading)
        assert ahead == pytest.approx(np.cos(np.radians(bearing - heading)))
        assert right == pytest.approx(np.sin(np.radians(bearing - heading)))


def test_lateral_and_longitudinal_are_not_folded():
    """Error east 7 m and north -7 m, camera at 30 degrees: far off to the side, less than 3 m along."""
    found = measures(truth_of([[0, 0]], heading_deg=30.0), np.array([[7.0, 7.0]]), np.zeros(1))
    assert found.longitudinal_within_m == {"1": 0.0, "3": 1.0, "5": 1.0}
    assert found.lateral_within_m == {"1": 0.0, "3": 0.0, "5": 0.0}
    assert found.mean_error_m == pytest.approx(7 * math.sqrt(2))


def test_angles():
    assert angle_between_deg(
        np.array([179.0, -179.0, 0.0, 10.0, 360.0]), np.array([-179.0, 179.0, 180.0, 350.0, 0.0])
    ) == (pytest.approx([2.0, 2.0, 180.0, 20.0, 0.0]))
    assert angle_between_deg(np.array([np.nan]), np.array([0.0])).tolist() == [math.inf]


def test_thresholds_are_strict():
    found = measures(truth_of([[0, 0]] * 3), np.array([[1.0, 0], [3.0, 0], [0.999, 0]]), np.array([1.0, 0.999, 5.0]))
    assert found.recall_within_m == pytest.approx({"1": 1 / 3, "3": 2 / 3, "5": 1.0})
    assert found.lateral_within_m == pytest.approx({"1": 1 / 3, "3": 2 / 3, "5": 1.0})
    assert found.longitudinal_within_m == {"1": 1.0, "3": 1.0, "5": 1.0}
    assert found.yaw_within_deg == pytest.approx({"1": 1 / 3, "3": 2 / 3, "5": 2 / 3})


def test_what_is_not_found_is_infinitely_far_off():
    xy = np.array([[0.0, 0.0], [np.nan, 0.0], [4.0, 3.0], [0.0, 0.0]])
    truth = truth_of(np.zeros((4, 2)))
    assert errors_m(truth, xy).tolist() == [0.0, math.inf, 5.0, 0.0]
    report = localization_report(truth, poses_of(xy))
    assert report.num_lost == 1
    assert report.whole.median_error_m == 2.5
    assert report.whole.p95_error_m == math.inf
    assert report.whole.recall_within_m["5"] == 0.5
    document = json.loads(report.to_json())
    assert document["whole"]["mean_error_m"] is None
    assert dict(report.rows())["pairs without a result"] == "1"


def test_baselines_of_uniform_places():
    rng = np.random.default_rng(3)
    side = 80.0
    truth = truth_of(rng.uniform(-0.5, 0.5, (4000, 2)) * side, side_m=side)
    report = localization_report(truth, poses_of(truth.xy_m), noise_deg=0.0)
    assert report.whole.mean_error_m == 0.0
    assert report.center.mean_error_m == pytest.approx(0.3826 * side, rel=0.02)  # (sqrt(2) + ln(1 + sqrt(2))) / 6
    assert report.chance.mean_error_m == pytest.approx(0.5214 * side, rel=0.02)  # mean distance of two points
    assert report.chance.recall_within_m["5"] == pytest.approx(math.pi * 25 / side**2, rel=0.1)
    assert not report.has_yaw
    assert "median yaw error" not in {row[0] for row in report.table()[1]}


def test_baselines_of_headings():
    rng = np.random.default_rng(4)
    truth = truth_of(np.zeros((3000, 2)))
    yaw = rng.uniform(-45, 45, 3000)
    truth = PoseTruth(**{name: getattr(truth, name) for name in ("xy_m", "heading_deg", "side_m", "area")}, yaw_deg=yaw)
    found = Poses(xy_m=truth.xy_m, yaw_deg=yaw + 2.0, radius95_m=np.ones(3000), log_density=np.zeros(3000))
    report = localization_report(truth, found, noise_deg=45.0)
    assert report.whole.median_yaw_error_deg == pytest.approx(2.0)
    assert report.whole.yaw_within_deg == {"1": 0.0, "3": 1.0, "5": 1.0}
    assert report.center.mean_yaw_error_deg == pytest.approx(22.5, rel=0.03)
    assert report.chance.mean_yaw_error_deg == pytest.approx(30.0, rel=0.03)
    assert report.has_yaw


def test_groups():
    xy = np.array([[0.0, 0.0], [30.0, 5.0], [-49.0, 20.0], [10.0, -24.0]])
    truth = truth_of(xy)
    truth = PoseTruth(
        xy_m=xy,
        yaw_deg=truth.yaw_deg,
        heading_deg=truth.heading_deg,
        side_m=truth.side_m,
        area=np.array(["b", "a", "a", "b"]),
    )
    assert truth.decentrality.tolist() == [0.0, 0.6, 0.98, 0.48]
    report = localization_report(truth, poses_of(xy + np.array([[0, 1], [0, 2], [0, 3], [0, 4]])))
    groups = {(group.kind, group.name): group.measures for group in report.groups}
    assert groups["area", "a"].mean_error_m == 2.5
    assert groups["area", "b"].mean_error_m == 2.5
    errors = [groups["decentrality", name].mean_error_m for name in QUARTERS]
    assert errors == [1.0, 4.0, 2.0, 3.0]
    heads, rows = report.group_table()
    assert len(heads) == len(rows[0])
    assert len(rows) == 6


def test_calibration():
    truth = truth_of(np.zeros((4, 2)), side_m=50.0)
    found = Poses(
        xy_m=np.array([[0.5, 0], [3.0, 0], [0, 0], [np.nan, 0]]),
        yaw_deg=np.zeros(4),
        radius95_m=np.array([1.0, 1.0, 2.0, np.nan]),
        log_density=np.array([-2.0, -4.0, -3.0, -math.inf]),
    )
    measured = calibration(truth, found)
    assert measured["share_inside_radius95"] == 0.5
    assert measured["nll_per_m2"] == pytest.approx(3.0)
    assert measured["median_nll_per_m2"] == 3.0
    assert measured["share_outside_map"] == 0.25
    assert measured["nll_per_m2_uniform"] == pytest.approx(math.log(2500))


def test_no_pairs_give_a_report():
    report = localization_report(truth_of(np.zeros((0, 2))), poses_of(np.zeros((0, 2))))
    assert report.whole.num_pairs == 0
    assert math.isnan(report.whole.median_error_m)
    assert json.loads(report.to_json())["whole"]["median_error_m"] is None
    assert report.group_table()[1] == []


def test_places_by_mercator():
    """Two positions and the pixel of the one in the 640 px reference of the other, zoom 20."""
    reference, query = (-122.32484011, 47.58619123), (-122.324936, 47.586118)
    (xr, yr), (xq, yq) = (pixel_from_lonlat(*place, 20) for place in (reference, query))
    assert (float(xq - xr + 320), float(yq - yr + 320)) == pytest.approx((248.49923, 400.95745), abs=1e-4)
    assert (float(xr - xq + 320), float(yr - yq + 320)) == pytest.approx((391.50077, 239.04255), abs=1e-4)
    assert float(distance_m(*reference, *query)) == pytest.approx(10.86394 * 6371008.8 / 6371004, abs=2e-5)


def test_short_distances_are_not_quantized():
    """Five centimetres stay five centimetres; the spherical law of cosines makes 0 of them."""
    for away_m in (0.01, 0.05, 0.1, 1.0, 5.0):
        degrees = math.degrees(away_m / 6_371_008.8)
        assert float(distance_m(8.0, 47.0, 8.0, 47.0 + degrees)) == pytest.approx(away_m, abs=1e-6)
