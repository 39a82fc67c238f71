"""Compresses images without loss by a trained model: at the model's own bits, in a file that other machines decode.

    nvae-compress --workdir=runs/mine my_pictures --output=set.nvc
    nvae-compress --workdir=digits digits.npy --output=digits.nvc
    nvae-compress --info set.nvc

The input is a folder of pictures, or one file: .npy, .npz (with `labels`), or IDX. Images must be of the model's size,
channels and levels. Names of pictures and classes are kept. It pays for many images of the kind that the model was
trained on (docs/compression.md). The file names the model by its weights: nvae-decompress needs the same ones.

Exit code: 0 written, 2 a mistake, or images that don't come back; nothing is written then.
"""

import pathlib
import time
from typing import Annotated

from nvae_tf import command_line
from nvae_tf.compression.container import unpacked
from nvae_tf.errors import start_tensorflow_quietly, wrap_read_errors


def main(
    input: Annotated[str | None, "A folder of pictures, or a file; may stand without --input=."] = None,
    output: Annotated[str | None, "The file to write, .nvc."] = None,
    workdir: Annotated[str | None, f"{command_line.RUN_HELP} Or a .keras file."] = None,
    chunk: Annotated[int, "Images of a chunk, which is decoded by itself; larger ones are smaller in all.", 1] = 500,
    tolerance: Annotated[float, "The largest error of other machines' numbers x, over 1 + |x|, up to 2^-13"] = 2.0**-17,
    verify: Annotated[bool, "Decode each chunk to be sure."] = True,
    overwrite: Annotated[bool, "Replace what is at --output already."] = False,
    info: Annotated[str | None, "Only tell what is in this file."] = None,
) -> None:
    """Compresses, or tells about a file."""
    if info:
        return print(_description(pathlib.Path(info)))
    for name, value in (("workdir", workdir), ("input", input), ("output", output)):
        if value is None:
            raise ValueError(f"--{name} is missing")
    place = command_line.output_place(output, (".nvc",), overwrite).path
    start_tensorflow_quietly()
    from nvae_tf.files import atomic_write
    from nvae_tf.generation.image_sets import read_set
    from nvae_tf.models.lossless import compress
    from nvae_tf.progress import StatusLine, counted
    from nvae_tf.serving.saved_model import coding_model

    source = coding_model(workdir)
    levels, labels, about = read_set(input, source.model.config, source.class_names)
    status, started, encoded = StatusLine(), time.monotonic(), []

    def progress(part):
        encoded.append(part)
        done, bits = sum(each.images for each in encoded), 8 * sum(len(each.data) for each in encoded)
        speed, rate = done / (time.monotonic() - started), bits / done / levels[0].size
        text = f"{done:,} of {len(levels):,} images, {speed:,.3g} images/s, {rate:.4f} bits/dim"
        status.show_if_due(text, done / len(levels))

    data = compress(source, levels, labels, about | {"model": workdir}, chunk, tolerance, verify, progress)
    atomic_write(place, data)
    bits, chunks = 8 * len(data), 8 * sum(len(each.data) for each in encoded)
    status.print(
        f"{counted(len(levels), 'image')} in {len(data):,} bytes: {bits / len(levels):,.2f} bits an image, "
        f"{bits / levels.size:.4f} bits/dim\n"
        f"    marks of values near a tie, for other machines   {sum(each.marks for each in encoded) / bits:.2%}\n"
        f"    draws of the first images of each chunk          {sum(each.start for each in encoded) / bits:.2%}\n"
        f"    header, index, names and classes                 {(bits - chunks) / bits:.2%}\n"
        f"{'decoded again: the same pixels; ' if verify else 'not verified; '}written to {place}"
    )


def _description(path: pathlib.Path) -> str:
    """What the header of a file says; of lists, how long they are."""
    data = path.read_bytes()
    with wrap_read_errors(f"{path}: ", ""):
        header, chunks = unpacked(data)
    lines = [f"{name}: {f'{len(value):,}' if name in ('names', 'labels') else value}" for name, value in header.items()]
    lines.append(f"chunks: {len(chunks)}, {8 * sum(map(len, chunks)) / header['images']:.2f} bits an image")
    return "\n  ".join([f"{path}: {path.stat().st_size:,} bytes", *lines])


run = command_line.command(main, words="input")
