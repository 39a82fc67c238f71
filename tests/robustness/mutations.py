"""Seeded damage to files, and files made to do harm: published files, runs (also as shared), exports, data sets.

Every mutant is a function of its base files and its seed alone. `canary` is a file that must never come to be.
"""

import functools
import io
import json
import math
import os
import pathlib
import pickle
import re
import shutil
import struct
import zipfile
import zlib
from random import Random
from typing import NamedTuple

import numpy as np

from nvae_tf.serving.outputs import write_digests
from tests.data.picture_factory import png_of_chunks

# More than may be used in all, less than a field of four bytes can say.
_BOMB_BYTES = 3900 << 20
_DEEP = 100_000
_WRONG = (0, -1, 4096, 10**6, 10**9, 10**30, 0.5, 1e308, math.nan, True, "8", "", None, [8, "x"], {"a": 1}, "x" * 10**6)
# Files to change besides one of each kind, less what follows a digit in their names.
_FAVORED = {
    "shared": ["prior.npz", "outliers.npz", "latents.npz", "config.json"] * 3,
    "exports": ["assets.extra/verification.npz", "assets.extra/sha"] * 4,
}


class Mutant(NamedTuple):
    path: pathlib.Path
    base: str  # the name of what it is made of
    how: str  # which file of it was changed, and how
    is_exact: bool  # whether numbers that are read must equal the base's
    is_sound: bool  # whether they must be read: what was changed stands beside them


class _Evenly:
    """Choices spread evenly over seeds one after another; random ones would repeat some and lack others."""

    def __init__(self, seed: int):
        self._rest = seed * (math.sqrt(5.0) - 1.0) / 2.0 % 1.0

    def choice(self, values):
        index, self._rest = divmod(self._rest * len(values), 1.0)
        return values[int(index)]


def mutant(kind: str, base: pathlib.Path, place: pathlib.Path, seed: int, canary: pathlib.Path) -> Mutant:
    """A base, or one of several, one file of which is other, gone, or another's."""
    random, evenly = Random(f"{kind} {seed}"), _Evenly(seed)
    source = evenly.choice(sorted(base.iterdir())) if kind in ("published", "pictures") else base
    path = place / ("1" if kind == "exports" else source.name)
    (shutil.copytree if source.is_dir() else shutil.copy)(source, path)
    files = [file for file in sorted(path.rglob("*")) if file.is_file() and file.name != ".lock"] or [path]
    # Each kind of file as often as the others, although there are more checkpoints.
    prefix = evenly.choice([*sorted({_prefix(path, file) for file in files}), *_FAVORED.get(kind, ())])
    file = random.choice([file for file in files if _prefix(path, file) == prefix])
    name = str(file.relative_to(path)) if source.is_dir() else file.name
    change = evenly.choice(_changes(kind, file))
    if change in _OF_FILES:
        change(file, random)
    else:
        file.write_bytes(change(file.read_bytes(), random, canary))
    if kind in ("run_folder", "shared"):
        (path / "config.py").write_text(f"open({str(canary)!r}, 'w').close()")
    is_exact = {
        "published": True,
        # Whole, checksums and all: what was changed can't be seen.
        "pictures": source.name.startswith("exact") and change not in (_change_png, _change_gzip, _change_archive),
        "run_folder": change is not _change_tensor,
        # Settings that can be but are others are told by a digest alone.
        "shared": change is not _change_tensor and name != "config.json",
        "exports": name.endswith("sha256.json") or change is _swap_files or random.random() < 0.5,
    }[kind]
    if kind == "exports" and not is_exact:
        write_digests(path)
    beside = kind == "run_folder" and not name.startswith(("config.json", "images.json", "checkpoints/"))
    is_sound = beside and change not in (_become_folder, _swap_files)
    reported = file if kind == "pictures" and file.suffix == ".npz" else path
    return Mutant(reported, source.name, f"{name}, {change.__name__}", is_exact, is_sound)


def _prefix(path, file):
    return re.sub(r"\d+.*", "", str(file.relative_to(path))) if path != file else file.name


def _changes(kind, file):
    anywhere = [_flip_bits, _flip_bits, _flip_bits, _cut, _change_block, _other_content, _become_pickle]
    if kind == "pictures":
        special = {".png": _change_png, ".npz": _change_archive, ".npy": _change_npy, ".gz": _change_gzip}
        return anywhere + [special.get(file.suffix, _claim_much)] * 5
    special = {".json": [_change_json] * 6, ".npz": [_change_array] * 12 + [_change_archive] * 5}
    special[".pt"] = [_change_archive, _change_archive, _change_contents, _change_contents, _replace_pickle]
    special |= dict.fromkeys((".csv", ".md", ""), [_change_lines] * 6)
    whole = [] if kind == "published" else [_remove, _become_folder, _swap_files]
    if file.name == "sha256.json":
        whole += [_forget_file] * 20
    elif file.name.startswith("step-") and file.suffix != ".png":
        whole += [_copy_as_later, _change_tensor, _change_tensor]
    return anywhere + special.get(file.suffix, []) + whole


def _flip_bits(content, random, canary):
    changed = bytearray(content)
    # Most of them near the ends, where most formats have what others are found by.
    ends = (0, len(content)), (0, min(len(content), 300)), (max(len(content) - 3000, 0), len(content))
    for _ in range(random.choice((1, 1, 1, 8))):
        changed[random.randrange(*random.choice(ends))] ^= 1 << random.randrange(8)
    return bytes(changed)


def _cut(content, random, canary):
    return content[: random.choice((0, 1, len(content) - 1, random.randrange(len(content))))]


def _change_block(content, random, canary):
    """Zeros, removes, repeats or moves a part."""
    start = random.randrange(len(content))
    end = start + random.choice((1, 16, 512, len(content) // 4 + 1))
    before, block, after = content[:start], content[start:end], content[end:]
    zeroed, repeated = before + bytes(len(block)) + after, before + block + block + after
    return random.choice((zeroed, repeated, before + after, after + before + block))


def _other_content(content, random, canary):
    nested = b"[" * _DEEP, b"[" * _DEEP + b"]" * _DEEP, b'{"a":' * _DEEP + b"1" + b"}" * _DEEP
    others = b"\xff\xfe\0", b"null", b"[]", b"5", b"9" * 5000, b"a,b\n" * 5000, random.randbytes(500)
    return random.choice((*nested, *others, content + random.randbytes(100), b"\xef\xbb\xbf" + content))


class _Harm:
    """An object that makes the canary where it is unpickled."""

    def __init__(self, random, canary):
        name, code = str(canary), f"open({str(canary)!r}, 'w').close()"
        calls = (os.system, f"touch {name}"), (exec, code), (eval, code), (open, name, "w"), (os.mkdir, name)
        called, *arguments = random.choice(calls)
        self._call = called, tuple(arguments)

    def __reduce__(self):
        return self._call


def _become_pickle(content, random, canary):
    return pickle.dumps(_Harm(random, canary), protocol=random.choice((0, 2, 4)))


def _odd_pickle(random):
    """Nested deeply, or claiming much: the settings of a published file, or all of it."""
    claims = b"\x8d" + struct.pack("<Q", 1 << 62), b"X" + struct.pack("<I", 1 << 31), b"\x8e" + b"\xff" * 8
    value = random.choice((b"]" * _DEEP + b"a" * (_DEEP - 1), b")" + b"\x85" * _DEEP, *claims))
    whole = b"}(X\4\0\0\0args" + value + b"X\n\0\0\0state_dict}u"
    return b"\x80\x02" + random.choice((whole, value)) + b"."


@functools.cache
def _bomb():
    """Deflated zeros and their CRC: a few megabytes that become gigabytes."""
    zeros, count, compressor = bytes(1 << 20), _BOMB_BYTES >> 20, zlib.compressobj(9, zlib.DEFLATED, -15)
    block = compressor.compress(zeros) + compressor.flush(zlib.Z_FULL_FLUSH)
    return block * count + b"\x03\0", functools.reduce(lambda crc, _: zlib.crc32(zeros, crc), range(count), 0)


def _entries(content):
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return [[info.filename, archive.read(info), info.compress_type] for info in archive.infolist()]


# Where a header of an archive says what of an entry, in the central directory; before the entry two bytes sooner.
_FIELDS = {"flags": ("<H", 8), "method": ("<H", 10), "crc": ("<I", 16), "packed": ("<I", 20), "size": ("<I", 24)}


def _zipped(entries, place=0, **claims):
    """The archive of such entries; of one of them both headers say what is not so."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data, method in entries:
            archive.writestr(zipfile.ZipInfo(name), data, method)
        local, central = archive.infolist()[place].header_offset if entries else 0, archive.start_dir
    changed = bytearray(file.getvalue())
    for _ in range(place):
        central = changed.index(b"PK\x01\x02", central + 1)
    for (form, offset), value in ((_FIELDS[name], value) for name, value in claims.items()):
        for header in (central + offset, local + offset - 2):
            struct.pack_into(form, changed, header, value & (0xFFFF if form == "<H" else 0xFFFFFFFF))
    return bytes(changed)


def _change_archive(content, random, canary):
    entries = _entries(content)
    one, other = (random.randrange(len(entries)) for _ in range(2))
    name, data, _ = entries[one]
    how = random.randrange(11)
    if how == 0:
        entries[one][2] = zipfile.ZIP_DEFLATED
    elif how == 1:
        entries = [[name, data, random.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2))] for name, data, _ in entries]
    elif how <= 3:
        entries[one][1] = random.choice((data[: len(data) // 2], b"", data[:-1], data + data, data + bytes(4)))
    elif how == 4 and len(data) != len(entries[other][1]):
        # With right checksums: what is as long can't be told apart.
        entries[one][1], entries[other][1] = entries[other][1], data
    elif how == 5:
        del entries[one]
    elif how == 6:
        entries[one][0] = random.choice((name + "x", "/" + name, "../" + name, "x" * 60_000))
    elif how == 7:
        entries = [entry for entry in entries if not entry[0].endswith("byteorder")]
        entries.append([f"{name.partition('/')[0]}/byteorder", b"big", zipfile.ZIP_STORED])
    elif how <= 9:
        # In place of an entry, or one more that nobody needs.
        packed, checksum = _bomb()
        place = one if how == 8 else len(entries)
        entries[place : place + 1] = [[name if how == 8 else "more.npy", packed, zipfile.ZIP_STORED]]
        return _zipped(entries, place, method=8, crc=checksum, size=_BOMB_BYTES)
    else:
        claim = random.choice((0, 1, len(data) * 2, 1 << 30, 2**32 - 2))
        return _zipped(entries, one, **{random.choice(list(_FIELDS)): claim})
    return _zipped(entries)


def _change_value(values, random):
    """Another value, or another name, somewhere in dictionaries in dictionaries."""
    group = values
    while isinstance(value := group[key := random.choice(sorted(group))], dict) and value:
        group = value
    if random.random() < 0.2:
        group["unknown" if random.random() < 0.5 else key + "x"] = group.pop(key)
    else:
        group[key] = random.choice((*_WRONG, -value if isinstance(value, int) else [value] * 1000))
    return values


def _change_json(content, random, canary):
    return json.dumps(_change_value(json.loads(content), random)).encode()


def _change_lines(content, random, canary):
    lines = content.splitlines(keepends=True)
    number = random.randrange(len(lines))
    parts, how = re.split(rb"([,: ])", lines[number]), random.randrange(5)
    values = b"", b"x", b"-1", b"nan", b"9" * 5000, b"1e999", b"\0", b'"', b"a" * 10**6, b"1,2", b"\n\n", b"../../x"
    parts[random.randrange(0, len(parts), 2)] = random.choice(values)
    lines[number : number + (how != 1)] = [[], [lines[number]], [lines[number][:3]], [b"".join(parts)]][min(how, 3)]
    return b"".join(lines)


def _change_array(content, random, canary):
    """An array that can't be: of another type or shape, with numbers that are none or too large, not in order."""
    with np.load(io.BytesIO(content)) as file:
        arrays = dict(file)
    name = random.choice([*sorted(arrays), *["about"] * (6 if "about" in arrays else 0)])
    values = math.nan, -math.inf, 1e300, 1j, b"x", None, {"a": 1}
    others = *(np.full(arrays[name].shape, value) for value in values), arrays[name][None], np.zeros([0, 2, 2])
    if name in ("kl", "mahalanobis"):
        others += (np.flip(arrays[name]) - 1,) * 9
    elif name == "about":
        others += (np.array(json.dumps(_change_value(json.loads(str(arrays[name])), random))),) * 30
    np.savez(file := io.BytesIO(), **arrays | {name: random.choice(others)})
    return file.getvalue()


# Of a few bytes, and 2^40 leaves for one who goes through it.
_SHARED = functools.reduce(lambda value, _: {"a": value, "b": value}, range(40), {})


def _other_tensor(tensor, random):
    import torch

    kinds = torch.float64, torch.int32, torch.int64, torch.bool, torch.complex64, torch.uint8
    others = tensor.reshape(-1)[:0], tensor.reshape(-1)[:-1], tensor.to_sparse(), torch.full(tensor.shape, math.nan)
    others += torch.zeros(1).expand(10**6, 10**6), torch.empty(10**5, 10**5, device="meta"), _SHARED
    return random.choice((*map(tensor.to, kinds), *others, tensor.tolist(), None, "x", 5, [tensor], {"a": tensor}))


def _change_contents(content, random, canary):
    import torch

    # A sound file of this project's; torch's list of safe classes is not one of a thread.
    held = torch.load(io.BytesIO(content), weights_only=False)
    args, state = vars(held["args"]), held["state_dict"]
    name, how = random.choice(sorted(state)), random.randrange(9)
    if how < 2:
        args[random.choice(sorted(args))] = random.choice(_WRONG)
    elif how < 4:
        sizes = [name for name in sorted(args) if name.startswith("num_")]
        args[random.choice(sizes)] = random.choice((10**3, 4096, 10**5, 10**9, 10**18))
    elif how < 6:
        state[name] = _other_tensor(state[name], random)
    elif how == 6:
        group = random.choice(("args", "state_dict", "optimizer", "epoch", "global_step", "nvae_tf", "unknown"))
        held[group] = random.choice((*_WRONG, _SHARED, [state], state[name]))
    else:
        place = random.choice((held, args, state, held.setdefault("optimizer", {})))
        place[random.choice(sorted(place) or ["state"])] = _Harm(random, canary)
    torch.save(held, file := io.BytesIO(), _use_new_zipfile_serialization=random.random() < 0.8)
    return file.getvalue()


def _replace_pickle(content, random, canary):
    entries = _entries(content)
    for entry in entries:
        if entry[0].endswith("/data.pkl"):
            entry[1] = random.choice((_become_pickle(b"", random, canary), _odd_pickle(random)))
    return _zipped(entries)


def _remove(file, random):
    file.unlink()


def _become_folder(file, random):
    file.unlink()
    (file / "x").mkdir(parents=True)


def _swap_files(file, random):
    other = random.choice([name for name in sorted(file.parent.iterdir()) if name.is_file()])
    content, others = file.read_bytes(), other.read_bytes()
    other.write_bytes(content)
    file.write_bytes(others)


def _forget_file(file, random):
    """Digests without one file's, or without any, and another file in its place."""
    digests = json.loads(file.read_text())
    name = random.choice([name for name in sorted(digests) if not name.endswith((".pb", ".npz"))])
    del digests[name]
    other = file.parents[1] / name
    other.write_bytes(other.read_bytes() + b"\n")
    file.write_text(json.dumps(random.choice((digests, {}, []))))


def _copy_as_later(file, random):
    step, later = file.name.partition(".")[0], random.choice((1000, 3, 10**9, 10**30))
    for part in file.parent.glob(f"{step}.*"):
        shutil.copy(part, file.parent / part.name.replace(step, f"step-{later}"))


def _change_tensor(file, random):
    """A whole checkpoint, checksums and all, one tensor of which is other."""
    import tensorflow as tf

    prefix = str(file.parent / file.name.partition(".")[0])
    reader = tf.train.load_checkpoint(prefix)
    tensors = {name: reader.get_tensor(name) for name in sorted(reader.get_variable_to_shape_map())}
    name = random.choice([name for name in tensors if name != "_CHECKPOINTABLE_OBJECT_GRAPH"])
    value = np.asarray(tensors.pop(name))
    others = value.astype(np.int64), value.astype(np.float64), value.astype(np.complex64), value[..., np.newaxis], b"x"
    other = random.choice((None, *others, np.full_like(value, -1), value.astype(np.float32) * np.nan, np.zeros(0)))
    tensors |= {} if other is None else {name: other}
    names, whole = [*tensors], [""] * len(tensors)
    tf.raw_ops.SaveV2(prefix=prefix, tensor_names=names, shape_and_slices=whole, tensors=[*tensors.values()])


# What changes files and not their contents alone.
_OF_FILES = (_remove, _become_folder, _swap_files, _copy_as_later, _change_tensor, _forget_file)


def _change_png(content, random, canary):
    """Other chunks, with the checksums right."""
    chunks, place = [], 8
    while place < len(content):
        (size,) = struct.unpack_from(">I", content, place)
        chunks.append([content[place + 4 : place + 8], content[place + 8 : place + 8 + size]])
        place += 12 + size
    how, number = random.randrange(6), random.randrange(len(chunks))
    if how == 0:
        side = random.choice((0, 1, 13_000, 65_000, 2**31 - 1, 2**32 - 1))
        chunks[0][1] = struct.pack(">II", side, random.choice((side, 12))) + chunks[0][1][8:]
    elif how == 1:
        chunks[0][1] = chunks[0][1][:8] + bytes(random.choice((0, 1, 2, 3, 4, 6, 8, 16, 255)) for _ in range(5))
    elif how == 2:
        chunks.insert(1, [random.choice((b"zTXt", b"iCCP")), b"a\0\0" + zlib.compress(bytes(100 << 20), 1)])
    elif how == 3:
        chunks[number:number] = [chunks[number]] * random.choice((1, 20_000))
    elif how == 4:
        chunks[number][1] = _change_block(chunks[number][1] or b"x", random, canary)
    else:
        chunks.insert(1, [random.choice((b"eXIf", b"acTL", b"fcTL", b"tRNS", b"PLTE", b"IEND")), random.randbytes(30)])
    return png_of_chunks(chunks)


def _claim_much(content, random, canary):
    """Sizes in the header of a picture, or of IDX, that it does not have."""
    if content[:2] == b"\xff\xd8":
        place, form = re.search(rb"\xff[\xc0-\xc2]", content).start() + 5, ">HH"
    else:
        starts = {b"BM": (18, "<II"), b"GI": (6, "<HH"), b"RI": (26, "<HH"), b"\0\0": (random.choice((4, 8)), ">II")}
        place, form = starts.get(content[:2], (8, "<HH"))
    most = 2**16 - 1 if "H" in form else 2**32 - 1
    claims = [random.choice((0, 1, 13_000, 16_000, most // 2, most)) for _ in range(2)]
    return content[:place] + struct.pack(form, *claims) + content[place + struct.calcsize(form) :]


def _change_npy(content, random, canary):
    end = 10 + struct.unpack_from("<H", content, 8)[0]
    shapes = "(-1, 12, 12, 3)", f"({10**15}, 12, 12, 3)", "(1, 12, 12, 3)", "()", "(6, 12, 1.5, 3)", "(" * 5000
    kinds = "'|O'", "'<f8'", "'>u2'", "'|S3'", "'<M8[s]'", "[('a', '|u1')]", f"open({str(canary)!r}, 'w')"
    shape, kind = random.choice((("(6, 12, 12, 3)", random.choice(kinds)), (random.choice(shapes), "'|u1'")))
    header = f"{{'descr': {kind}, 'fortran_order': {random.random() < 0.3}, 'shape': {shape}}}\n".encode()
    body = random.choice((content[end:], _become_pickle(b"", random, canary)))
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(header)) + header + body


def _change_gzip(content, random, canary):
    """Another content of a gzip file, or one that is far larger than it."""
    if random.random() < 0.5:
        packed, checksum = _bomb()
        return content[:10] + packed + struct.pack("<II", checksum, _BOMB_BYTES)
    other = random.choice((_claim_much, _cut, _other_content))(zlib.decompress(content, 31), random, canary)
    compressor = zlib.compressobj(9, zlib.DEFLATED, 31)
    return compressor.compress(other) + compressor.flush()
