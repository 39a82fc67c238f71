"""The whole way of a request through two processes: what the demo does."""

import numpy as np
import pytest
from PIL import Image

from export import try_serving


@pytest.mark.slow
def test_both_protocols_give_the_same_picture(folder, tmp_path, capfd):
    try_serving.main([f"--path={folder.parent}", f"--output={tmp_path / 'new'}", "--count=5", "--temperature=0.7"])
    by_grpc, by_rest = (np.asarray(Image.open(tmp_path / "new" / name)) for name in try_serving.PICTURES)
    np.testing.assert_array_equal(by_grpc, by_rest)
    assert by_grpc.std() > 0
    said = capfd.readouterr().out
    assert "$ python -m export.serve --model=model" in said and "export.client sample" in said


def test_what_cannot_be_served_is_told_in_one_line(tmp_path, capfd):
    with pytest.raises(SystemExit) as stopped:
        try_serving.main([f"--path={tmp_path / 'none'}", f"--output={tmp_path / 'new'}"])
    said = capfd.readouterr().err
    assert stopped.value.code == 2 and said.count("\n") == 1 and "no such folder" in said
