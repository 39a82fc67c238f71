"""`metrics.csv`: each step once, also when a run was cut off at the worst moment."""

import csv

import pytest

from train.records import COLUMNS, MetricsFile


def row(step):
    return dict.fromkeys(COLUMNS, 0.123456789) | {"step": step}


def steps(path):
    with path.open(newline="") as file:
        return [int(found["step"]) for found in csv.DictReader(file)]


@pytest.fixture
def metrics(tmp_path):
    metrics = MetricsFile(tmp_path / "metrics.csv")
    for step in (10, 20, 30):
        metrics.append(row(step))
    return metrics


def test_lines_are_added_below_one_header(metrics, tmp_path):
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert lines[0] == ",".join(COLUMNS) and len(lines) == 4
    assert lines[1] == "10," + ",".join(["0.123457"] * (len(COLUMNS) - 1))
    assert metrics.has(20) and not metrics.has(25)


def test_a_run_that_goes_back_writes_no_step_twice(metrics, tmp_path):
    metrics.keep_until(25)
    assert steps(tmp_path / "metrics.csv") == [10, 20]
    metrics.append(row(30))
    assert steps(tmp_path / "metrics.csv") == [10, 20, 30]


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_half_written_line_is_dropped(metrics, tmp_path, cut):
    path = tmp_path / "metrics.csv"
    path.write_bytes(path.read_bytes()[:-cut])
    metrics.keep_until(30)
    metrics.append(row(40))
    expected = [10, 20, 40] if cut > 9 else [10, 20, 30, 40]
    assert steps(path) == expected
    assert path.read_text().endswith("\n") and len(path.read_text().splitlines()) == len(expected) + 1


def test_looking_changes_nothing(metrics, tmp_path):
    before = (tmp_path / "metrics.csv").stat().st_mtime_ns
    metrics.keep_until(30)
    assert (tmp_path / "metrics.csv").stat().st_mtime_ns == before


def test_without_a_file_there_is_no_line(tmp_path):
    metrics = MetricsFile(tmp_path / "metrics.csv")
    metrics.keep_until(5)
    assert not metrics.has(5) and not (tmp_path / "metrics.csv").exists()
