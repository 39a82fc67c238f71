"""The curves of `train.report`: read from a run's files, and drawn from numbers; the page is in test_report.py."""

import re

import numpy as np
import pytest

from nvae_tf.reports import curves
from nvae_tf.reports.page import loss_curves
from nvae_tf.training.outputs import TensorBoardWriter


def line(*values):
    return curves.Series("x", [10 * number for number in range(len(values))], values)


def path_of(chart):
    (path,) = re.findall(r'class="line line0" d="(M[^"]*L[^"]*)"', chart)
    return path


def test_one_line_of_metrics_and_a_half_written_one(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,test_nelbo_nats,train_nelbo_nats\n20,7.5,nan\n40,6.")
    metrics = curves.read_metrics(tmp_path / "metrics.csv")
    assert metrics["test_nelbo_nats"] == ([20], [7.5]) and np.isnan(metrics["train_nelbo_nats"].values).all()
    section = loss_curves(metrics)
    assert "only one evaluation so far" in section and "step 20: 7.5 nats per image" in section
    assert "Without values in metrics.csv: Reconstruction" in section


def test_event_files_of_a_run_that_went_back_and_was_cut_off(tmp_path):
    for first, value in ((1, 1.0), (3, 2.0)):
        writer = TensorBoardWriter(tmp_path / str(first))
        writer.image(first, "kl_per_group/picture", np.zeros([2, 2, 1], np.uint8))
        for step in range(first, first + 3):
            writer.scalars(step, {"train/loss": 3.0, "kl_per_group/00": value, "kl_per_group/01": value})
        writer._writer.close()
        (file,) = (tmp_path / str(first)).glob("*tfevents*")
        # In the order of their names, which begin with the second of their making.
        file.rename(tmp_path / f"{first}.tfevents")
    (tmp_path / "3.tfevents").write_bytes((tmp_path / "3.tfevents").read_bytes()[:-3])
    scalars = curves.read_scalars(tmp_path, ["kl_per_group"])
    assert scalars["kl_per_group/00"] == ([1, 2, 3, 4, 5], [1.0, 1.0, 2.0, 2.0, 2.0])
    of_groups = curves.group_curves(scalars, "kl_per_group")
    assert set(scalars) == {"kl_per_group/00", "kl_per_group/01"} and of_groups.groups == [0, 1]
    np.testing.assert_array_equal(of_groups.values[1], [1.0, 1.0, 2.0, 2.0, np.nan])


def test_an_axis_places_values():
    straight = curves.Axis(0.0, 10.0, 100.0, 300.0)
    assert [straight.place(value) for value in (0.0, 5.0, 10.0)] == [100.0, 200.0, 300.0]
    assert straight.ticks() == [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
    logarithmic = curves.axis_of([1.0, 100.0, float("nan")], 200.0, 0.0, may_be_logarithmic=True)
    assert logarithmic.place(10.0) == pytest.approx(100.0) and {1.0, 10.0, 100.0} <= set(logarithmic.ticks())
    assert not curves.axis_of([-1.0, 100.0], 0.0, 1.0, may_be_logarithmic=True).is_logarithmic
    for equal in ([0.0, 0.0], [3.0], [-2.0, -2.0]):
        assert curves.axis_of(equal, 0.0, 8.0).place(equal[0]) == pytest.approx(4.0)
    assert curves.axis_of([float("nan")], 0.0, 8.0) == curves.Axis(0.0, 1.0, 0.0, 8.0)


def test_a_chart_draws_a_straight_line_straight_a_gap_as_a_gap_and_thins_long_ones():
    places = re.findall(r"[ML]([\d.]+) ([\d.]+)", path_of(curves.line_chart("A", "b", [line(0.0, 1.0, 2.0)])))
    places = np.array(places, np.float64)
    assert places[0][0] == curves.LEFT and places[2][0] == curves.RIGHT and places[0][1] > places[2][1]
    np.testing.assert_allclose(places[1], (places[0] + places[2]) / 2, atol=0.11)
    broken = curves.line_chart("<A>", "b", [line(0.0, 1.0, float("nan"), 2.0)])
    assert re.sub(r"[\d. ]", "", path_of(broken)) == "MhLMh"
    assert "<title>x, step 20" not in broken and "&lt;A&gt;" in broken
    chosen = curves.evenly_chosen(5000, 1000)
    assert len(chosen) == 1000 and (chosen[0], chosen[-1]) == (0, 4999)
    long = curves.line_chart("A", "b", [line(*np.sin(np.arange(5000)))])
    assert long.count("<circle") == 100 and "step 49,990:" in long and len(long) < 50_000


def test_a_heat_map_of_many_groups_and_steps():
    values = np.geomspace(1e-6, 10.0, 36)[:, np.newaxis] * np.ones(200)
    values[3, :100] = np.nan
    drawn = curves.heat_map("A", "nats", [f"<{row}>" for row in range(36)], range(200), values, True)
    cells = re.findall(r'fill="(#\w+)"><title>([^<]*)</title>', drawn)
    assert len(cells) == 36 * 60 - 26 and drawn.count("&lt;35&gt;, mean of steps") == 60
    assert ("#fde725", "&lt;35&gt;, mean of steps 0 to 3: 10 nats") in cells
    shades = curves.shades_of(values, is_logarithmic=False)
    assert shades.value(0.5) == pytest.approx(5.0) and curves.color(shades.place(5.0)) == "#21918c"
    assert curves.color(curves.shades_of(np.full([1, 1], np.nan), True).place(0.0)) == "#440154"
