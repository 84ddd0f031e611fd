"""Curves: slopes and smoothing against closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from nsr.evaluation.curves import MOST_SHOWN, Curves, Tail, fitted_line, shown, slope, smoothed

TWENTY_PERCENT = Tail(0.2, True)


def curves(values, steps=None, seconds=None, epoch_steps: int | None = 40) -> Curves:
    values = np.asarray(values, dtype=float)
    steps = np.arange(10, 10 * len(values) + 10, 10) if steps is None else np.asarray(steps)
    columns = {"rgb": values}
    if seconds is not None:
        columns["seconds"] = np.asarray(seconds, dtype=float)
    return Curves("run", steps, columns, epoch_steps)


def test_slope_of_a_line_per_epoch_and_per_minute():
    steps = np.arange(10, 1010, 10)
    found = slope(curves(3 - 0.002 * steps, steps, seconds=0.5 * steps), "rgb", TWENTY_PERCENT, by_epoch=True)
    assert found.per_epoch == pytest.approx(-0.002 * 40)
    assert found.per_minute == pytest.approx(-0.002 * 2 * 60)
    assert (found.first, found.last, found.rows) == (810, 1000, 20)
    assert slope(curves(3 - 0.002 * steps, steps), "rgb", TWENTY_PERCENT, by_epoch=False).per_epoch == pytest.approx(-0.002)


def test_slope_is_of_least_squares_over_the_last_part_alone():
    rng = np.random.default_rng(0)
    values = np.concatenate([np.linspace(9, 1, 60), 1 + 0.1 * rng.normal(size=40)])
    found = slope(curves(values), "rgb", Tail(10, False), by_epoch=True)
    assert found.rows == 40 + 1  # 10 epochs are 400 steps, and both ends count
    expected = np.polyfit(np.arange(600, 1001, 10) / 40, values[59:], 1)[0]
    assert found.per_epoch == pytest.approx(expected)
    assert slope(curves(values), "rgb", Tail(1.0, True), by_epoch=True).rows == 100


def test_slope_leaves_out_what_is_not_there():
    values = np.linspace(0, 9.9, 100)
    values[[85, 95]] = np.nan
    values[98:] = np.nan  # a loss of a stage that has ended
    found = slope(curves(values), "rgb", TWENTY_PERCENT, by_epoch=True)
    assert found.per_epoch == pytest.approx(0.1 * 4)
    assert found.last == 980
    assert np.isnan(found.per_minute)  # nobody has logged seconds
    assert slope(curves(np.full(5, np.nan)), "rgb", TWENTY_PERCENT, by_epoch=True) is None
    assert slope(curves(values), "psnr", TWENTY_PERCENT, by_epoch=True) is None
    assert np.isnan(slope(curves([1.0]), "rgb", TWENTY_PERCENT, by_epoch=True).per_epoch)


def test_fitted_line_goes_through_the_middle():
    x, y = np.array([1.0, 2, 6]), np.array([0.0, 5, 4])
    ends, values = fitted_line(x, y, 2.0)
    np.testing.assert_allclose(ends, [1, 6])
    np.testing.assert_allclose(values, [3 - 2 * 2, 3 + 3 * 2])
    along, values = fitted_line(x, y, 2.0, 11)
    np.testing.assert_allclose(values, 2 * along - 3)


@pytest.mark.parametrize("count", [0, 1, 7, MOST_SHOWN, MOST_SHOWN + 1, 10 * MOST_SHOWN])
def test_of_long_curves_as_many_are_shown_as_can_be_seen(count):
    part = shown(count)
    assert len(part) == min(count, MOST_SHOWN)
    assert len(set(part)) == len(part)
    assert list(part[[0, -1]] if count else part) == ([0, count - 1] if count else [])


def test_smoothing_begins_at_the_first_value_and_skips_holes():
    np.testing.assert_allclose(smoothed(np.full(6, 2.5), 0.9), 2.5)
    np.testing.assert_array_equal(smoothed(np.array([1.0, 4, 2]), 0), [1, 4, 2])
    result = smoothed(np.array([1.0, np.nan, 3.0]), 0.5)
    np.testing.assert_allclose(result, [1, np.nan, (0.25 * 1 + 0.5 * 3) / 0.75])
    step = smoothed(np.concatenate([np.zeros(200), np.ones(1)]), 0.75)
    assert step[-1] == pytest.approx(0.25)


def test_tails_in_words():
    assert str(Tail(0.2, True)) == "last 20 %"
    assert str(Tail(5, False)) == "last 5 epochs"
