"""Published files whose archive or pickle is not what it says: refused in one line, or read with the right numbers."""

import argparse
import collections
import itertools
import struct
import zipfile

import numpy as np
import pytest

import nvae_tf
from nvae_tf.latent_plan import CELL_SETS
from nvae_tf.published import torch_file as torch_files
from nvae_tf.published.implied_size import fewest_layers, fewest_numbers
from nvae_tf.published.names import published_tensors
from nvae_tf.published.torch_file import read_torch_checkpoint
from nvae_tf.published.weights import published_shape

pytestmark = pytest.mark.torch

NAME = "normal_decoder_tiny"
PROTO = b"\x80\x02"
ARGS, STATE = b"X\x04\x00\x00\x00args", b"X\x0a\x00\x00\x00state_dict"
ORDERED_DICT = b"ccollections\nOrderedDict\n"


@pytest.fixture
def content(published):
    """What a published file holds, to be changed and saved again."""
    import torch

    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(published.path(f"{NAME}.pt"), weights_only=True)


@pytest.fixture
def saved(tmp_path):
    """`saved(content)`: the path of a torch file with that content."""
    import torch

    def save(content, **settings):
        torch.save(content, tmp_path / "saved.pt", **settings)
        return tmp_path / "saved.pt"

    return save


@pytest.fixture
def archive(tmp_path):
    """`archive(records, kinds)`: an archive of the records, all or some of them packed, checksums and all."""

    def write(records, kinds=None, kind=zipfile.ZIP_STORED):
        with zipfile.ZipFile(tmp_path / "x.pt", "w") as file:
            for name, data in records:
                file.writestr(zipfile.ZipInfo(name), data, (kinds or {}).get(name, kind))
        return tmp_path / "x.pt"

    return write


@pytest.fixture
def pickled(archive):
    """`pickled(data)`: an archive with that pickle and no tensors."""
    records = [("x/byteorder", b"little"), ("x/version", b"3\n")]
    return lambda data, **settings: archive([("x/data.pkl", data), *records], **settings)


def records_of(published):
    with zipfile.ZipFile(published.path(f"{NAME}.pt")) as file:
        return [(entry.filename, file.read(entry)) for entry in file.infolist()]


def place_of(records, end):
    return next(place for place, (name, _) in enumerate(records) if name.endswith(end))


def refused(path):
    """The message of a file that is refused: one line that begins with its name."""
    with pytest.raises(ValueError) as caught:
        read_torch_checkpoint(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message and len(message) < 1000
    return message


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda data: data[: len(data) // 2], "bytes where its tensors need"),
        (lambda data: b"", "has 0 bytes where its tensors need"),
        (lambda data: data + bytes(4), "bytes where its tensors need"),
    ],
    ids=["half", "empty", "longer"],
)
@pytest.mark.parametrize("kind", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED], ids=["stored", "deflated"])
def test_a_record_of_another_size(change, told, kind, published, archive):
    records = records_of(published)
    place = place_of(records, "data/97")
    records[place] = (records[place][0], change(records[place][1]))
    message = refused(archive(records, {records[place][0]: kind}))
    assert "'97'" in message and told in message


def test_swapped_missing_and_doubled_records(published, archive):
    records = records_of(published)
    one, other = place_of(records, "data/97"), place_of(records, "data/0")
    swapped = list(records)
    swapped[one], swapped[other] = (records[one][0], records[other][1]), (records[other][0], records[one][1])
    assert "where its tensors need" in refused(archive(swapped))
    assert "'97' is missing" in refused(archive(records[:one] + records[one + 1 :]))
    assert "'x' belongs to none of its tensors" in refused(archive([*records, (f"{NAME}/data/x", b"1234")]))
    with pytest.warns(UserWarning, match="Duplicate name"):
        path = archive([*records, (records[one][0], bytes(len(records[one][1])))])
    assert "two parts of one name" in refused(path)


@pytest.mark.parametrize("packed", ["all", "every third"])
def test_deflated_archives_are_read(packed, published, archive):
    records = records_of(published)
    kinds = {name: zipfile.ZIP_DEFLATED for name, _ in records[:: 1 if packed == "all" else 3]}
    checkpoint = read_torch_checkpoint(archive(records, kinds))
    expected = read_torch_checkpoint(published.path(f"{NAME}.pt"))
    assert not checkpoint.is_mapped and expected.is_mapped
    assert checkpoint.state.keys() == expected.state.keys()
    for name, value in expected.state.items():
        np.testing.assert_array_equal(checkpoint.state[name], value, err_msg=name)


def test_what_torch_can_not_unpack(published, archive):
    records = records_of(published)
    assert "does not read" in refused(archive(records, {records[-1][0]: zipfile.ZIP_BZIP2}))


@pytest.mark.parametrize("order", [b"big", b"middle"])
def test_another_byte_order(order, published, archive):
    records = [(name, order if name.endswith("byteorder") else data) for name, data in records_of(published)]
    assert "byte order" in refused(archive(records))


def test_files_without_checksums(published, content, saved):
    import torch

    torch.serialization.set_crc32_options(False)
    try:
        path = saved(content)
    finally:
        torch.serialization.set_crc32_options(True)
    expected = read_torch_checkpoint(published.path(f"{NAME}.pt")).state
    for name, value in read_torch_checkpoint(path).state.items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


def test_one_checksum_that_is_taken_away(published, tmp_path):
    """It is 0 where torch was asked for none; then no part has one."""
    data = bytearray(published.path(f"{NAME}.pt").read_bytes())
    with zipfile.ZipFile(published.path(f"{NAME}.pt")) as file:
        entry = next(entry for entry in file.infolist() if entry.filename.endswith("data/97"))
    in_directory = data.rfind(entry.filename.encode()) - 46
    assert data[in_directory : in_directory + 4] == b"PK\x01\x02"
    data[in_directory + 16 : in_directory + 20] = bytes(4)
    (tmp_path / "x.pt").write_bytes(data)
    assert "Bad CRC-32" in refused(tmp_path / "x.pt")


def test_zip_bombs(pickled, archive):
    assert "would unpack to 100 MB" in refused(pickled(PROTO + b"N" * 100_000_000, kind=zipfile.ZIP_DEFLATED))
    assert "holds far more than" in refused(pickled(PROTO + b"N" * 10_000_000, kind=zipfile.ZIP_DEFLATED))


def nested(count):
    return b")" + b"\x85" * count


@pytest.mark.parametrize(
    ("data", "told"),
    [
        # Python would hash it by recursion in C, and the process would end there.
        (PROTO + b"}" + nested(300_000) + b"K\x01s.", "nested deeper"),
        (PROTO + b"}" + nested(1) + b"K\x01s.", "neither text nor numbers"),
        (PROTO + ORDERED_DICT + b"]" + nested(1) + b"K\x01\x86a\x85R.", "with arguments"),
        (PROTO + b"ctorch\nFloatStorage\n\x8a\x06\x00\x00\x00\x00\x00\x01\x85R.", "wants to call 'torch.FloatStorage'"),
        (PROTO + b"ctorch\nload\nX\x01\x00\x00\x00x\x85R.", "wants to call 'torch.load'"),
        (PROTO + b"\x8a\x09" + bytes(8) + b"\x01.", "whole number of 65 bits"),
        (PROTO + b"X\xff\xff\xff\xffabc", "cut short or damaged"),
        (PROTO + b"N", "cut short or damaged"),
        (PROTO + b"R.", "cut short or damaged"),
        (PROTO + b"J\xff\xff\xff\xff\x85Q.", "something else than tensors"),
        (PROTO + b"\x95" + bytes(8) + b"N.", "is no torch file"),
        (PROTO + b"}.", "not an NVAE checkpoint"),
        # Attributes that would hide a dictionary's own methods.
        (PROTO + ORDERED_DICT + b")R(" + ARGS + b"}" + STATE + b"}u}X\x04\x00\x00\x00keysK\x05sb.", None),
        (PROTO + b"}(" + ARGS + b"}" + STATE + ORDERED_DICT + b")R}X\x05\x00\x00\x00itemsK\x05sbu.", None),
        (PROTO + b"}(" + ARGS + b"cargparse\nNamespace\n)\x81N}\x86b" + STATE + b"}u.", "attributes in a way"),
    ],
    ids=itertools.count(),
)
def test_hostile_pickles(data, told, pickled):
    if told is None:
        assert not read_torch_checkpoint(pickled(data)).state
    else:
        assert told in refused(pickled(data))


def test_a_storage_that_is_not_there(pickled):
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu\x8a\x08"
    assert "'0' is missing" in refused(pickled(PROTO + storage + struct.pack("<q", 2**62) + b"tQ."))
    assert "does not say which numbers" in refused(pickled(PROTO + storage + struct.pack("<q", -1) + b"tQ."))


@pytest.mark.parametrize("kind", ["int64", "bool", "complex64"])
def test_weights_that_are_no_floats(kind, content, saved):
    import torch

    content["state_dict"]["stem.weight"] = content["state_dict"]["stem.weight"].to(getattr(torch, kind))
    assert f"stem.weight holds numbers of type {kind}, and weights are floats" in refused(saved(content))


def test_tensors_that_repeat_their_numbers(content, saved):
    import torch

    content["state_dict"]["stem.weight"] = torch.zeros(1, 1).expand(10**9, 10**9)
    assert "far larger than the file" in refused(saved(content))
    # Sharing by itself is no fault.
    content["state_dict"]["stem.weight"] = content["state_dict"]["enc0.1.weight"]
    state = read_torch_checkpoint(saved(content)).state
    np.testing.assert_array_equal(state["stem.weight"], state["enc0.1.weight"])


@pytest.mark.parametrize(
    "name", ["a\nb", "a" * 10_000, "\x1b[31m", "\ud800"], ids=["newline", "long", "escape", "surrogate"]
)
def test_names_that_are_not_one_line_of_text(name, content, saved):
    plain = {**content, "args": argparse.Namespace(**vars(content["args"]))}
    content["state_dict"][name] = content["state_dict"]["stem.weight"]
    assert "'state_dict' holds an entry whose name" in refused(saved(content))
    del content["state_dict"][name]
    setattr(plain["args"], name, 5)
    assert "'args' holds an entry whose name" in refused(saved(plain))
    assert "'optimizer.state' holds" in refused(saved({**content, "optimizer": {"state": {name: 1}}}))


def test_names_in_other_scripts(content, saved):
    content["state_dict"]["weiß.重み"] = content["state_dict"]["stem.weight"]
    assert "weiß.重み" in read_torch_checkpoint(saved(content)).state


def test_states_that_are_nested_or_repeated_without_end(content, saved):
    value = {}
    for _ in range(30):
        value = {number: value for number in range(10)}
    assert "is nested deeper" in refused(saved({**content, "optimizer": {"state": value}}))
    wide = {}
    for _ in range(4):
        wide = {number: wide for number in range(1000)}
    assert len(read_torch_checkpoint(saved({**content, "optimizer": wide})).optimizer) == 1000
    circle = []
    circle.append(circle)
    assert "is nested deeper" in refused(saved({**content, "optimizer": {"param_groups": circle}}))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [1], "x" * 10_000, {1: {2: 3}}], ids=type)
def test_settings_that_are_no_plain_values(value, content, saved):
    content["args"].node_rank = value
    read_torch_checkpoint(saved(content))
    content["args"].num_nf = value
    assert "'args' has a value of num_nf that is neither" in refused(saved(content))


@pytest.mark.parametrize(
    ("name", "value"),
    [("num_latent_scales", -1e308), ("num_nf", 2.5), ("num_x_bits", "8"), ("arch_instance", 5)],
)
def test_settings_of_wrong_types(name, value, content, saved):
    setattr(content["args"], name, value)
    with pytest.raises(ValueError, match=r"saved\.pt: 'args' has a setting of a wrong type \(model\..*must be of type"):
        nvae_tf.from_torch_checkpoint(saved(content))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_channels_enc", 4096),
        ("num_channels_dec", 4096),
        ("num_latent_per_group", 10**5),
        ("num_groups_per_scale", 2**62),
        ("min_groups_per_scale", 2**62),
        ("num_cell_per_cond_enc", 10**6),
        ("num_preprocess_cells", 10**6),
        ("num_postprocess_cells", 10**9),
        ("num_nf", 10**9),
        ("num_latent_scales", 2**62),
        ("num_preprocess_blocks", 2**62),
    ],
)
def test_settings_of_a_far_larger_model(name, value, content, saved, monkeypatch):
    monkeypatch.setattr(torch_files, "NVAE", lambda *_: pytest.fail("the model is made"))
    setattr(content["args"], name, value)
    with pytest.raises(ValueError, match=r"saved\.pt: (the published weights do not fit .* at least|model\.num_)"):
        nvae_tf.from_torch_checkpoint(saved(content))


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        *(dict(cell_set=name) for name in CELL_SETS),
        dict(num_latent_scales=1, num_groups_per_scale=1),
        dict(num_channels_encoder=1, num_channels_decoder=1, num_latent_per_group=1),
        dict(num_preprocess_blocks=0, num_postprocess_blocks=0),
        dict(num_flows=0, squeeze_excite=False),
        dict(num_bits=8, likelihood="logistic_mixture", image_channels=3, num_mixtures=7, num_flows=3),
        dict(adaptive_groups=True, num_groups_per_scale=4, num_cells_per_group_encoder=2),
    ],
    ids=str,
)
def test_a_model_is_never_smaller_than_its_lower_bound(changes, published):
    config = published.config(**changes)
    shapes = [published_shape(tensor) for tensor in published_tensors(published.without_arrays(config))]
    assert fewest_layers(config) <= len(shapes)
    numbers = sum(int(np.prod(shape)) for shape in shapes)
    assert numbers / 8 < fewest_numbers(config) <= numbers


def test_old_files_that_were_cut_are_refused_before_their_tensors_are_made(content, saved):
    path = saved(content, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    assert "cut short: it has" in refused(path)
    # Texts that are said to be longer than any memory.
    place = data.index(b"X\x04\x00\x00\x00args")
    path.write_bytes(data[:place] + b"\x8d" + b"\xff" * 7 + b"\x7f" + data[place:])
    assert "cut short or damaged" in refused(path)
    small = {"args": {}, "state_dict": collections.OrderedDict()}
    path = saved(small, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes().replace(b"]q\x00.", b"]q\x00X\x01\x00\x00\x000a."))
    assert "its list of storages is not that of its tensors" in refused(path)
