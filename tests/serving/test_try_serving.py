"""The whole way of a request through two processes: what the demo does."""

import numpy as np
import pytest
from PIL import Image


@pytest.mark.slow
def test_both_protocols_give_the_same_picture(folder, tmp_path, script):
    output = tmp_path / "new"
    code, printed, errors = script(
        "try_serving", f"--path={folder.parent}", f"--output={output}", "--count=5", "--temperature=0.7"
    )
    assert code == 0, errors
    by_grpc, by_rest = (np.asarray(Image.open(output / f"served_{name}.png")) for name in ("grpc", "rest"))
    np.testing.assert_array_equal(by_grpc, by_rest)
    assert by_grpc.std() > 0
    assert printed.startswith("ready: ") and "5 images in " in printed


def test_what_cannot_be_served_is_reported_in_one_line(tmp_path, refused):
    assert "no such folder" in refused("try_serving", f"--path={tmp_path / 'none'}", f"--output={tmp_path / 'new'}")
