import sys
import zipfile

import numpy as np
import pytest

import nvae_tf
import nvae_tf.published.torch_file as torch_files
from nvae_tf.published.settings import model_config_from_published, objective_config_from_published
from nvae_tf.published.torch_file import read_torch_checkpoint
from tests.tiny_model import assert_same

pytestmark = pytest.mark.torch

NAME = "normal_decoder_tiny"


@pytest.fixture
def content(published):
    return published.read(f"{NAME}.pt")


@pytest.fixture
def saved(published, tmp_path):
    return lambda content, **settings: published.saved(content, tmp_path / "saved.pt", **settings)


def refused(path):
    """The message of a file that is refused, one line; what damage and foreign objects lead to is in robustness/."""
    with pytest.raises(ValueError) as caught:
        read_torch_checkpoint(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message and len(message) < 1000
    return message


@pytest.mark.parametrize("name", ["mnist_tiny", "cifar10_tiny", "celeba64_tiny", "normal_decoder_tiny"])
def test_the_file_has_the_recorded_weights_and_settings(name, published):
    """Those of which tests/test_parity.py replays the numbers; what is made of them is in test_import_and_export.py."""
    checkpoint = read_torch_checkpoint(published.path(f"{name}.pt"))
    settings, state = published.recorded(name)
    assert model_config_from_published(checkpoint.settings) == model_config_from_published(settings)
    assert objective_config_from_published(checkpoint.settings).regularization == settings["weight_decay_norm"]
    for key, value in state.items():
        # The recorded names of inner norms are the shorter ones.
        longer = ".bn.".join(key.rsplit(".", 1))
        read = checkpoint.state[key if key in checkpoint.state else longer]
        np.testing.assert_array_equal(read, value, err_msg=key)


def test_missing_torch(published, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ValueError, match=r"torch is not installed: pip install"):
        nvae_tf.from_torch_checkpoint(published.path(f"{NAME}.pt"))


def test_deflated_archives_and_archives_without_checksums_are_read(published, content, saved, tmp_path):
    import torch

    expected = read_torch_checkpoint(published.path(f"{NAME}.pt")).state
    with zipfile.ZipFile(published.path(f"{NAME}.pt")) as stored, zipfile.ZipFile(tmp_path / "x.pt", "w") as deflated:
        for number, name in enumerate(stored.namelist()):
            deflated.writestr(name, stored.read(name), zipfile.ZIP_STORED if number % 3 else zipfile.ZIP_DEFLATED)
    assert_same(read_torch_checkpoint(tmp_path / "x.pt").state, expected)
    torch.serialization.set_crc32_options(False)
    try:
        path = saved(content)
    finally:
        torch.serialization.set_crc32_options(True)
    assert_same(read_torch_checkpoint(path).state, expected)


def test_files_of_another_form(content, saved):
    import torch

    assert "not an NVAE checkpoint" in refused(saved({"state_dict": {}}))
    state = {"a\nb": content["state_dict"]["stem.weight"]}
    assert "'state_dict' does not hold values by names" in refused(saved({**content, "state_dict": state}))
    repeated = {"stem.weight": torch.zeros(1, 1).expand(10**9, 10**9)}
    assert "far larger than the file" in refused(saved({**content, "state_dict": repeated}))
    path = saved(content)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr(archive.namelist()[-1], b"")
    assert "two records of one name" in refused(path)


def test_other_forms_that_are_read(content, saved):
    import torch

    state = content["state_dict"]
    state["stem.weight"] = torch.nn.Parameter(state["stem.weight"])
    weight = state["enc0.1.weight"].bfloat16()
    state["enc0.1.weight"] = weight
    # In another script; and sharing of numbers is no fault.
    state["weiß.重み"] = state["stem.weight"]
    checkpoint = read_torch_checkpoint(saved({**content, "args": vars(content["args"])}))
    assert dict(checkpoint.settings) == vars(content["args"]) and checkpoint.state.keys() == state.keys()
    np.testing.assert_array_equal(checkpoint.state["enc0.1.weight"].astype(np.float32), weight.float().numpy())
    old_form = read_torch_checkpoint(saved(content, _use_new_zipfile_serialization=False))
    assert_same(old_form.state, checkpoint.state)


def test_weights_that_do_not_fit_their_settings_are_named_with_the_file(content, saved, monkeypatch):
    content["args"].num_channels_enc += 2
    with pytest.raises(ValueError, match=r"saved\.pt: the published weights do not fit .* stem\.weight has shape"):
        nvae_tf.from_torch_checkpoint(saved(content))
    content["args"].num_channels_enc = 4096
    monkeypatch.setattr(torch_files, "NVAE", lambda *_: pytest.fail("the model is made"))
    with pytest.raises(ValueError, match=r"saved\.pt: the published weights do not fit .* at least [0-9,]{7,}"):
        nvae_tf.from_torch_checkpoint(saved(content))
