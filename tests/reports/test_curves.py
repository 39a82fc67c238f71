import re

import numpy as np

from nvae_tf.reports import curves
from nvae_tf.reports.page import loss_curves
from nvae_tf.training.outputs import TensorBoardWriter


def chart(*values):
    return curves.line_chart("<A>", "b", {"x": curves.Curve([10 * number for number in range(len(values))], values)})


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
    groups, _, values = curves.group_curves(scalars, "kl_per_group")
    assert set(scalars) == {"kl_per_group/00", "kl_per_group/01"} and groups == [0, 1]
    np.testing.assert_array_equal(values[1], [1.0, 1.0, 2.0, 2.0, np.nan])


def test_a_line_chart():
    straight = chart(0.0, 1.0, 2.0)
    places = np.array(re.findall(r'<use href="[^"]*" x="([\d.]+)" y="([\d.]+)"[^>]*><title>', straight), np.float64)
    assert places[0][0] < places[2][0] and places[0][1] > places[2][1] and "&lt;A&gt;" in straight
    np.testing.assert_allclose(places[1], (places[0] + places[2]) / 2, atol=1e-3)
    # In the colors of the page, whatever they are, and nothing from elsewhere.
    assert "var(--line0)" in straight and not re.search("#0a63c4|https?:|url", straight)
    assert straight == chart(0.0, 1.0, 2.0) and "logarithmic" not in straight
    broken = chart(1.0, 100.0, float("nan"), 2.0)
    assert broken.count("<title>") == 3 and "<title>x, step 20" not in broken and "logarithmic axis" in broken
    assert re.search(r'd="M [^"]*L [^"]*M ', broken)
    long = chart(*np.sin(np.arange(5000)))
    assert long.count("<title>") == 100 and "step 0:" in long and "step 49,990:" in long and len(long) < 100_000
    rare = np.where(np.arange(500) == 7, 1.0, np.nan)
    assert chart(*rare).count("<title>") == 1


def test_a_heat_map_of_many_groups_and_steps():
    values = np.geomspace(1e-6, 10.0, 36)[:, np.newaxis] * np.ones(200)
    values[3, :100] = np.nan
    drawn = curves.heat_map("A", "nats", [f"<{row}>" for row in range(36)], range(200), values, True)
    cells = re.findall(r'fill: (#\w+)"><title>([^<]*)</title>', drawn)
    assert len(cells) == 36 * 60 - 26 and drawn.count("&lt;35&gt;, mean of steps") == 60
    colors = dict((title, color) for color, title in cells)
    assert colors["&lt;35&gt;, mean of steps 0 to 3: 10 nats"] == "#fde725"
    assert colors["&lt;0&gt;, mean of steps 0 to 3: 1e-06 nats"] == "#440154"
    assert "&lt;35&gt;: 10<" in drawn and "logarithmic colors" in drawn
    assert curves.heat_map("A", "", ["x", "y"], [60], np.array([[0.0], [np.nan]]), True).count("<title>") == 1
