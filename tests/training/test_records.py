"""`metrics.csv`: each step once, also when a run was cut off at the worst moment."""

import csv

import pytest

from nvae_tf.training.outputs import COLUMNS, MetricsFile


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
    """Also one that has all its columns: who knows how many digits the last is short of."""
    path = tmp_path / "metrics.csv"
    path.write_bytes(path.read_bytes()[:-cut])
    metrics.keep_until(30)
    assert not metrics.has(30)
    metrics.append(row(40))
    assert steps(path) == [10, 20, 40]
    assert path.read_text().endswith("\n") and len(path.read_text().splitlines()) == 4


@pytest.mark.parametrize("content", [b"", b"step,epo", b"step,epoch\n10,1\n", b"\0" * 300, b"\xff\xfe\n\x00\n"])
def test_a_file_that_was_destroyed_is_begun_anew(tmp_path, content):
    path = tmp_path / "metrics.csv"
    path.write_bytes(content)
    metrics = MetricsFile(path)
    metrics.keep_until(30)
    assert not metrics.has(10)
    metrics.append(row(40))
    metrics.append(row(50))
    assert steps(path) == [40, 50] and path.read_text().startswith("step,epoch,")


DAMAGES = {
    "a line twice": (lambda lines: [*lines[:3], lines[2], *lines[3:]], [10, 20, 30], 1),
    "a line twice, with other numbers": (lambda lines: [*lines, lines[2].replace("0.1", "0.2")], [10, 20, 30], 1),
    "a second header": (lambda lines: [*lines, lines[0]], [10, 20, 30], 1),
    "a cut line": (lambda lines: [*lines[:2], lines[2][:40], lines[3]], [10, 30], 1),
    "no score": (lambda lines: [*lines[:2], lines[2].replace("0.123457", ""), lines[3]], [10, 30], 1),
    "letters": (lambda lines: [*lines[:2], lines[2].replace("0.1", "0.x", 3), lines[3]], [10, 30], 1),
    "a quote": (lambda lines: [*lines[:2], lines[2].replace(",0", ',"0', 1), lines[3]], [10, 30], 1),
    "a long line": (lambda lines: [*lines[:2], "9" * 200_000, *lines[2:]], [10, 20, 30], 1),
    "a large step": (lambda lines: [*lines, "9" * 5000 + lines[1][2:]], [10, 20, 30], 1),
    "a carriage return": (lambda lines: [*lines[:2], lines[2].replace(",0", "\r,0", 1), lines[3]], [10, 30], 2),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_and_doubled_lines_are_dropped_and_counted(metrics, tmp_path, damage):
    change, left, damaged = DAMAGES[damage]
    path = tmp_path / "metrics.csv"
    path.write_text("\n".join(change(path.read_text().splitlines())) + "\n", newline="")
    assert metrics.keep_until(30) == damaged
    assert steps(path) == left and metrics.value(30, "test_nelbo_nats") == 0.123457 and metrics.has(20) == (20 in left)
    assert metrics.keep_until(30) == 0


@pytest.fixture
def older_file(tmp_path):
    """A file of a version that did not know the last column yet."""
    path = tmp_path / "metrics.csv"
    lines = [",".join(COLUMNS[:-1]), *(",".join([step] + ["0.5"] * (len(COLUMNS) - 2)) for step in ("10", "20"))]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_an_older_file_goes_on_with_a_new_column(older_file):
    metrics = MetricsFile(older_file)
    metrics.keep_until(20)
    assert metrics.has(20)
    metrics.append(row(30))
    metrics.append(row(40))
    with older_file.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(COLUMNS)
    assert [found["step"] for found in rows] == ["10", "20", "30", "40"]
    assert [found[COLUMNS[-1]] for found in rows] == ["", "", "0.123457", "0.123457"]
    assert [found["epoch"] for found in rows] == ["0.5", "0.5", "0.123457", "0.123457"]
    # What has empty places is as whole as the others.
    metrics.keep_until(30)
    assert steps(older_file) == [10, 20, 30]


def test_looking_at_an_older_file_changes_nothing(older_file):
    before = older_file.read_bytes()
    MetricsFile(older_file).keep_until(20)
    assert MetricsFile(older_file).has(10) and older_file.read_bytes() == before


def test_columns_of_a_newer_version_stay(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text(",".join([*COLUMNS, "invented_later"]) + "\n" + ",".join(["10"] * len(COLUMNS) + ["0.7"]) + "\n")
    metrics = MetricsFile(path)
    metrics.keep_until(10)
    metrics.append(row(20))
    with path.open(newline="") as file:
        assert [(found["step"], found["invented_later"]) for found in csv.DictReader(file)] == [
            ("10", "0.7"),
            ("20", ""),
        ]


def test_looking_changes_nothing(metrics, tmp_path):
    before = (tmp_path / "metrics.csv").stat().st_mtime_ns
    metrics.keep_until(30)
    assert (tmp_path / "metrics.csv").stat().st_mtime_ns == before


def test_without_a_file_there_is_no_line(tmp_path):
    metrics = MetricsFile(tmp_path / "metrics.csv")
    metrics.keep_until(5)
    assert not metrics.has(5) and not (tmp_path / "metrics.csv").exists()
