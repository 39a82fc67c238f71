import argparse
import copy
import io
import os
import pickle
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


@pytest.fixture
def archive(tmp_path):
    """`archive(records, kinds)`: an archive of the records, all or some of them compressed, checksums and all."""

    def write(records, kinds=None, kind=zipfile.ZIP_STORED):
        with zipfile.ZipFile(tmp_path / "x.pt", "w") as file:
            for name, data in records:
                file.writestr(zipfile.ZipInfo(name), data, (kinds or {}).get(name, kind))
        return tmp_path / "x.pt"

    return write


@pytest.fixture
def records(published):
    with zipfile.ZipFile(published.path(f"{NAME}.pt")) as file:
        return {entry.filename: file.read(entry) for entry in file.infolist()}


def refused(path):
    """The message of a file that is refused: one line that begins with its name."""
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


def test_a_missing_file_and_missing_torch(published, tmp_path, monkeypatch):
    for path in (tmp_path / "missing.pt", tmp_path):
        with pytest.raises(FileNotFoundError, match="(no such file|a folder); give the path of a published checkpoint"):
            read_torch_checkpoint(path)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ValueError, match=r"need PyTorch: pip install \"nvae_tf\[torch\]\""):
        nvae_tf.from_torch_checkpoint(published.path(f"{NAME}.pt"))


def flipped_weights(data):
    """Other bytes in the middle of the largest tensor, which no unpickler looks at."""
    entries = [entry for entry in zipfile.ZipFile(io.BytesIO(data)).infolist() if "/data/" in entry.filename]
    largest = max(entries, key=lambda entry: entry.file_size)
    middle = largest.header_offset + largest.file_size // 2
    return data[:middle] + bytes(byte ^ 0xFF for byte in data[middle : middle + 64]) + data[middle + 64 :]


def without_one_checksum(data):
    """It is 0 where torch was asked for none; then no record has one."""
    entry = next(e for e in zipfile.ZipFile(io.BytesIO(data)).infolist() if e.filename.endswith("data/97"))
    in_directory = data.rfind(entry.filename.encode()) - 46
    assert data[in_directory : in_directory + 4] == b"PK\x01\x02"
    return data[: in_directory + 16] + bytes(4) + data[in_directory + 20 :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: b"<html>404</html>" * 100,
        lambda data: data.replace(b"state_dict", b"\xff" * 10),
        flipped_weights,
        without_one_checksum,
    ],
    ids=["half", "empty", "web page", "broken name", "flipped weights", "checksum"],
)
def test_damaged_files(damage, published, tmp_path):
    path = tmp_path / "damaged.pt"
    path.write_bytes(damage(published.path(f"{NAME}.pt").read_bytes()))
    refused(path)


@pytest.mark.parametrize("kind", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED], ids=["stored", "deflated"])
def test_records_of_other_sizes_missing_and_doubled(kind, records, archive):
    one, other = f"{NAME}/data/97", f"{NAME}/data/0"
    for data in (records[one][: len(records[one]) // 2], b"", records[one] + bytes(4)):
        assert "does not match expected size" in refused(archive({**records, one: data}.items(), {one: kind}))
    swapped = {**records, one: records[other], other: records[one]}
    assert "does not match expected size" in refused(archive(swapped.items(), kind=kind))
    refused(archive([item for item in records.items() if item[0] != one], kind=kind))
    with pytest.warns(UserWarning, match="Duplicate name"):
        path = archive([*records.items(), (one, bytes(len(records[one])))], kind=kind)
    assert "two records of one name" in refused(path)


def test_deflated_archives_and_archives_without_checksums_are_read(published, records, archive, content, saved):
    import torch

    expected = read_torch_checkpoint(published.path(f"{NAME}.pt")).state
    path = archive(records.items(), dict.fromkeys([*records][::3], zipfile.ZIP_DEFLATED))
    assert_same(read_torch_checkpoint(path).state, expected)
    torch.serialization.set_crc32_options(False)
    try:
        path = saved(content)
    finally:
        torch.serialization.set_crc32_options(True)
    assert_same(read_torch_checkpoint(path).state, expected)


def test_an_archive_that_unpacks_to_far_more_than_a_model_is_refused(archive):
    path = archive([("x/data.pkl", b"\x80\x02" + b"N" * 100_000_000)], kind=zipfile.ZIP_DEFLATED)
    assert "to 100,000,002 bytes, as no checkpoint does" in refused(path)


class Foreign:
    """An object that makes a folder where it is unpickled."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


def test_foreign_objects_are_not_built(content, saved, tmp_path):
    trace, path = tmp_path / "trace", tmp_path / "x.pt"
    message = refused(saved({**content, "scheduler": Foreign(trace)}))
    # No one is advised to load them all the same.
    assert "not a checkpoint that PyTorch's safe loader reads" in message and "weights_only" not in message
    path.write_bytes(pickle.dumps({"args": Foreign(trace), "state_dict": {}}))
    refused(path)
    assert not trace.exists()
    # The file would have made it in an open unpickler.
    pickle.loads(path.read_bytes())
    assert trace.exists()


def test_files_and_checkpoints_of_another_form(content, saved):
    import torch

    for other in (torch.zeros(3), [1, 2], {}, {"state_dict": {}}, {"args": argparse.Namespace()}):
        assert "not an NVAE checkpoint" in refused(saved(other))
    for changes in (dict(args=None), dict(args={1: 2}), dict(state_dict=None), dict(state_dict=[1])):
        refused(saved({**content, **changes}))
    for value in ("text", torch.eye(3).to_sparse(), torch.empty(3, device="meta")):
        message = refused(saved({**content, "state_dict": {"stem.weight": value}}))
        assert "'state_dict' holds something other than a dense tensor by the name stem.weight" in message
    repeated = torch.zeros(1, 1).expand(10**9, 10**9)
    for tensor, message in (
        (torch.ones(3, dtype=torch.int64), "stem.weight holds numbers of type torch.int64, and weights are floats"),
        (
            torch.ones(3, dtype=torch.complex64),
            "stem.weight holds numbers of type torch.complex64, and weights are floats",
        ),
        (repeated, "far larger than the file"),
    ):
        content["state_dict"]["stem.weight"] = tensor
        assert message in refused(saved(content))


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
    array = checkpoint.state["enc0.1.weight"]
    np.testing.assert_array_equal(array.astype(np.float32), weight.float().numpy())
    np.testing.assert_array_equal(checkpoint.state["weiß.重み"], checkpoint.state["stem.weight"])
    old_form = read_torch_checkpoint(saved(content, _use_new_zipfile_serialization=False))
    assert_same(old_form.state, checkpoint.state)


@pytest.mark.parametrize(
    "name", ["a\nb", "a" * 10_000, "\x1b[31m", "\ud800"], ids=["newline", "long", "escape", "surrogate"]
)
def test_names_that_are_not_one_line_of_text(name, content, saved):
    state, args = {name: content["state_dict"]["stem.weight"]}, argparse.Namespace(**{name: 5})
    assert "'state_dict' holds an entry whose name" in refused(saved({**content, "state_dict": state}))
    assert "'args' holds an entry whose name" in refused(saved({**content, "args": args}))


@pytest.mark.parametrize("value", [float("nan"), [1], "x" * 10_000], ids=type)
def test_settings_that_are_no_plain_values(value, content, saved):
    content["args"].node_rank = value
    read_torch_checkpoint(saved(content))
    content["args"].num_nf = value
    assert "'args' has a value of num_nf that is neither" in refused(saved(content))


def test_settings_of_a_far_larger_model(content, saved, monkeypatch):
    for name, value in (
        *((f"num_channels_{part}", 4096) for part in ("enc", "dec")),
        ("num_latent_per_group", 10**5),
        *((f"{number}_groups_per_scale", 2**62) for number in ("num", "min")),
        *((f"num_{cells}", 10**6) for cells in ("cell_per_cond_enc", "preprocess_cells", "postprocess_cells", "nf")),
        *((f"num_{name}", 2**62) for name in ("latent_scales", "preprocess_blocks")),
    ):
        monkeypatch.setattr(torch_files, "NVAE", lambda *_: pytest.fail("the model is made"))
        larger = copy.deepcopy(content)
        setattr(larger["args"], name, value)
        with pytest.raises(ValueError, match=r"saved\.pt: (the published weights do not fit .* at least|model\.num_)"):
            nvae_tf.from_torch_checkpoint(saved(larger))


def test_weights_that_do_not_fit_their_settings_are_named_with_the_file(content, saved, monkeypatch):
    wider = copy.deepcopy(content)
    wider["args"].num_channels_enc += 2
    with pytest.raises(ValueError, match=r"saved\.pt: the published weights do not fit .* stem\.weight has shape"):
        nvae_tf.from_torch_checkpoint(saved(wider))
    monkeypatch.setattr(torch_files, "NVAE", lambda *_: pytest.fail("the model is made"))
    # One large weight, the top of the decoder: at 64x64 and 100,000 channels 1.6 GB.
    small = dict.fromkeys(("num_latent_scales", "num_groups_per_scale", "num_latent_per_group", "num_mixture_dec"), 1)
    blocks = dict(num_preprocess_blocks=0, num_postprocess_blocks=0, num_channels_enc=1, num_channels_dec=10**5)
    vars(content["args"]).update(small | blocks)
    with pytest.raises(ValueError, match=r"saved\.pt: the published weights do not fit .* at least [0-9,]{11,}"):
        nvae_tf.from_torch_checkpoint(saved(content))


def test_garbled_files_of_older_torch_versions(saved):
    """Whatever exception the reader ends with, struct.error, IndexError, TypeError or AssertionError."""
    import torch

    content = {"args": argparse.Namespace(a=1), "state_dict": {"a": torch.ones(2, 3)}}
    path = saved(content, _use_new_zipfile_serialization=False)
    data, num_refused = path.read_bytes(), 0
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
            num_refused += 1
    assert num_refused > 100
