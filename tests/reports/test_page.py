"""Curves of a run, read from files that may be half written; tests/commands/test_report.py looks at pages."""

import numpy as np

from nvae_tf.reports.page import read_curves
from nvae_tf.runs.run_folder import RunFolder
from nvae_tf.training.outputs import TensorBoardLog


def test_one_line_of_metrics_and_a_half_written_one(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,test_nelbo_nats,train_nelbo_nats\n20,7.5,nan\n40,6.")
    curves, seconds = read_curves(RunFolder(tmp_path))
    assert curves["test_nelbo_nats"] == ([20], [7.5]) and np.isnan(curves["train_nelbo_nats"][1]).all()
    assert seconds == 0.0


def test_event_files_of_a_run_that_went_back_and_was_cut_off(tmp_path):
    folder = RunFolder(tmp_path)
    folder.tensorboard.mkdir()
    for first, value in ((1, 1.0), (3, 2.0)):
        writer = TensorBoardLog(tmp_path / str(first), {})
        writer.image(first, "kl_per_group/picture", np.zeros([2, 2, 1], np.uint8))
        for step in range(first, first + 3):
            writer.scalars(step, {"kl_per_group/00": value, "train/reconstruction": 3.0, "train/kl": value})
        writer._writer.close()
        (file,) = (tmp_path / str(first)).glob("*tfevents*")
        # In the order of their names, which begin with the second of their making.
        file.rename(folder.tensorboard / f"{first}.tfevents")
    file = folder.tensorboard / "3.tfevents"
    file.write_bytes(file.read_bytes()[:-3])
    # Fewer points than TensorBoard has.
    folder.metrics_file.write_text("step,train_nelbo_nats,test_nelbo_nats\n5,9.0,8.0\n")
    curves, seconds = read_curves(folder)
    training_curves = {f"train_{part}_nats" for part in ("nelbo", "reconstruction", "kl")}
    assert set(curves) == training_curves | {"test_nelbo_nats", "kl_per_group/00"}
    assert curves["kl_per_group/00"] == ([1, 2, 3, 4, 5], [1.0, 1.0, 2.0, 2.0, 2.0]) and 0.0 < seconds < 60.0
    assert curves["train_nelbo_nats"] == ([1, 2, 3, 4], [4.0, 4.0, 5.0, 5.0])
    assert curves["test_nelbo_nats"] == ([5], [8.0])
