"""Published `.pt` files: the same weights as recorded, and a clear word about every file that is something else."""

import argparse
import io
import os
import pickle
import sys
import zipfile

import numpy as np
import pytest

import nvae_tf
from nvae_tf.published.settings import model_config_from_published
from nvae_tf.published.torch_file import read_torch_checkpoint
from nvae_tf.published.weights import load_published_weights

NAME = "normal_decoder_tiny"


@pytest.fixture
def torch():
    import torch

    return torch


@pytest.fixture
def content(torch, published):
    """What a published file holds, to be changed and saved again."""
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(published.path(f"{NAME}.pt"), weights_only=True)


@pytest.fixture
def saved(torch, tmp_path):
    """`saved(content)`: the path of a torch file with that content."""

    def save(content, **settings):
        torch.save(content, tmp_path / "saved.pt", **settings)
        return tmp_path / "saved.pt"

    return save


def damaged(published, tmp_path, damage):
    data = bytearray(published.path(f"{NAME}.pt").read_bytes())
    path = tmp_path / "damaged.pt"
    path.write_bytes(damage(data))
    return path


def short_name(name):
    """The name without the wrapper of norms."""
    return name.replace(".bn.bn.", ".bn.") if ".bn.bn." in name else name.replace(".bn.", ".")


@pytest.mark.torch
@pytest.mark.parametrize("name", ["mnist_tiny", "cifar10_tiny", "celeba64_tiny", "normal_decoder_tiny"])
def test_the_same_weights_and_settings_as_recorded(name, published):
    checkpoint = read_torch_checkpoint(published.path(f"{name}.pt"))
    settings, state = published.recorded(name)
    assert settings.items() <= dict(checkpoint.settings).items()
    ignored = (".weight_normalized", ".num_batches_tracked")
    found = {n if n in state else short_name(n): v for n, v in checkpoint.state.items() if not n.endswith(ignored)}
    assert found.keys() == {name for name in state if not name.endswith(ignored)}
    for key, value in found.items():
        assert isinstance(value, np.ndarray)
        np.testing.assert_array_equal(value, state[key], err_msg=key)


@pytest.mark.torch
def test_the_model_is_that_of_the_recorded_weights(published):
    model = nvae_tf.from_torch_checkpoint(published.path(f"{NAME}.pt"))
    settings, state = published.recorded(NAME)
    expected = nvae_tf.NVAE(model_config_from_published(settings))
    load_published_weights(expected, state)
    assert model.config == expected.config
    assert model.objective.regularisation == settings["weight_decay_norm"]
    np.testing.assert_array_equal(model.generate(2, seed=1), expected.generate(2, seed=1))


@pytest.mark.torch
@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: data[:-10],
        lambda data: data[:100],
        lambda data: b"",
        lambda data: b"<html>404</html>" * 100,
        lambda data: data.replace(b"state_dict", b"\xff" * 10),
    ],
    ids=["half", "ten bytes short", "head", "empty", "web page", "broken name"],
)
def test_a_damaged_file_is_named(damage, published, tmp_path):
    path = damaged(published, tmp_path, damage)
    with pytest.raises(ValueError, match=r"damaged\.pt: "):
        read_torch_checkpoint(path)


def flipped_weights(data):
    """Other bytes in the middle of the largest tensor, which no unpickler looks at."""
    entries = [entry for entry in zipfile.ZipFile(io.BytesIO(data)).infolist() if "/data/" in entry.filename]
    largest = max(entries, key=lambda entry: entry.file_size)
    middle = largest.header_offset + largest.file_size // 2
    data[middle : middle + 64] = bytes(byte ^ 0xFF for byte in data[middle : middle + 64])
    return data


@pytest.mark.torch
def test_damaged_weights_are_noticed(published, tmp_path):
    with pytest.raises(ValueError, match=r"damaged\.pt: "):
        read_torch_checkpoint(damaged(published, tmp_path, flipped_weights))


class Foreign:
    """An object that makes a folder where it is unpickled."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


@pytest.mark.torch
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "plain pickle"])
def test_foreign_objects_are_not_built(zipped, content, saved, tmp_path):
    trace = tmp_path / "trace"
    content["scheduler"] = Foreign(trace)
    if zipped:
        path = saved(content)
    else:
        path = tmp_path / "saved.pt"
        path.write_bytes(pickle.dumps({"args": Foreign(trace), "state_dict": {}}))
    with pytest.raises(ValueError, match=r"saved\.pt: "):
        read_torch_checkpoint(path)
    assert not trace.exists()
    # The file would have made it in an open unpickler.
    if not zipped:
        pickle.loads(path.read_bytes())
        assert trace.exists()


@pytest.mark.torch
def test_no_one_is_told_to_load_foreign_objects_all_the_same(content, saved, tmp_path):
    content["scheduler"] = Foreign(tmp_path / "trace")
    with pytest.raises(ValueError, match="wants to build .*mkdir.* no NVAE checkpoint needs") as caught:
        read_torch_checkpoint(saved(content))
    assert "weights_only" not in str(caught.value)


@pytest.mark.torch
def test_torch_files_that_are_no_checkpoint(torch, content, saved):
    for other in (torch.zeros(3), [1, 2], {}, {"state_dict": {}}, {"args": argparse.Namespace()}):
        with pytest.raises(ValueError, match="not an NVAE checkpoint"):
            read_torch_checkpoint(saved(other))


@pytest.mark.torch
@pytest.mark.parametrize(
    "changes",
    [
        dict(args=None),
        dict(args=5),
        dict(state_dict=None),
        dict(state_dict=[1]),
        dict(state_dict={1: None}),
        dict(args={1: 2}),
    ],
    ids=str,
)
def test_checkpoints_of_another_form(changes, content, saved):
    with pytest.raises(ValueError, match=r"saved\.pt: "):
        read_torch_checkpoint(saved({**content, **changes}))


@pytest.mark.torch
def test_weights_that_are_no_tensors(content, saved):
    with pytest.raises(
        ValueError, match=r"saved\.pt: 'state_dict' holds something else than tensors by name: stem\.weight"
    ):
        read_torch_checkpoint(saved({**content, "state_dict": {"stem.weight": "text"}}))


@pytest.mark.torch
@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (lambda torch: torch.eye(3).to_sparse(), "sparse_coo, float32"),
        (lambda torch: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), "strided, qint8"),
    ],
    ids=["sparse", "quantized"],
)
def test_tensors_of_other_kinds_are_named(kind, told, torch, content, saved):
    content["state_dict"]["stem.weight"] = kind(torch)
    with pytest.raises(ValueError, match=rf"saved\.pt: stem\.weight is a tensor of a kind .*\({told}\)"):
        read_torch_checkpoint(saved(content))
    content["state_dict"].pop("stem.weight")
    content["optimizer"] = {"state": {0: {"exp_avg": kind(torch)}}}
    with pytest.raises(ValueError, match=rf"saved\.pt: optimizer\.state\.0\.exp_avg is .*\({told}\)"):
        read_torch_checkpoint(saved(content))


@pytest.mark.torch
def test_half_precision_is_read_where_it_lies(torch, content, saved):
    weight = content["state_dict"]["enc0.1.weight"].bfloat16()
    content["state_dict"]["enc0.1.weight"] = weight
    checkpoint = read_torch_checkpoint(saved(content))
    array = checkpoint.state["enc0.1.weight"]
    np.testing.assert_array_equal(array.astype(np.float32), weight.float().numpy())
    # Not a copy of NumPy's: the import lets go of its pages.
    assert checkpoint.is_mapped and not array.base.flags.owndata


@pytest.mark.torch
def test_settings_may_be_a_dictionary(content, saved):
    checkpoint = read_torch_checkpoint(saved({**content, "args": vars(content["args"])}))
    assert dict(checkpoint.settings) == vars(content["args"])


@pytest.mark.torch
def test_weights_that_do_not_fit_their_settings_are_named_with_the_file(content, saved):
    content["args"].num_channels_enc += 2
    with pytest.raises(ValueError, match=r"saved\.pt: the published weights do not fit .* stem\.weight has shape"):
        nvae_tf.from_torch_checkpoint(saved(content))
    del content["args"].num_nf
    with pytest.raises(ValueError, match=r"saved\.pt: the checkpoint's settings lack 'num_nf'"):
        nvae_tf.from_torch_checkpoint(saved(content))


@pytest.mark.torch
def test_the_format_of_older_torch_versions(content, saved):
    path = saved(content, _use_new_zipfile_serialization=False)
    assert read_torch_checkpoint(path).state.keys() == content["state_dict"].keys()


@pytest.mark.torch
def test_garbled_files_of_older_torch_versions(torch, saved):
    """Whatever exception the reader ends with, struct.error, IndexError, TypeError or AssertionError."""
    content = {"args": argparse.Namespace(a=1), "state_dict": {"a": torch.ones(2, 3)}}
    path = saved(content, _use_new_zipfile_serialization=False)
    data, told = path.read_bytes(), 0
    generator = np.random.default_rng(0)
    garbled = [data[:length] for length in range(0, len(data), 5)]
    for place in generator.choice(len(data), 150, replace=False):
        garbled.append(data[:place] + bytes([generator.integers(256)]) + data[place + 1 :])
    for other in garbled:
        path.write_bytes(other)
        try:
            read_torch_checkpoint(path)
        except ValueError as error:
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
            told += 1
    assert told > 100


@pytest.mark.torch
def test_weights_saved_as_parameters(torch, content, saved):
    content["state_dict"]["stem.weight"] = torch.nn.Parameter(content["state_dict"]["stem.weight"])
    assert read_torch_checkpoint(saved(content)).state.keys() == content["state_dict"].keys()


@pytest.mark.parametrize("name", ["missing.pt", ""])
def test_a_missing_file(name, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file; give the path of a published checkpoint"):
        read_torch_checkpoint(tmp_path / name)


def test_without_torch(published, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match="needs PyTorch, an optional extra: `make torch`"):
        nvae_tf.from_torch_checkpoint(published.path(f"{NAME}.pt"))
