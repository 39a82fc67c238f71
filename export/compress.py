"""Compresses images without loss by a trained model: at the model's own bits, in a file that other machines decode.

    nvae-compress --workdir=runs/mine my_pictures --output=set.nvc
    nvae-compress --workdir=digits digits.npy --output=digits.nvc
    nvae-compress --info set.nvc

The input is a folder of pictures, or one file: .npy, .npz (with `labels`), or IDX. Images must be of the model's size,
channels and levels. Names of pictures and classes are kept. It pays for many images of the kind that the model was
trained on (docs/compression.md). Every chunk is decoded before it counts; --noverify leaves that out. The file names
the model by its weights: nvae-decompress needs the same ones.

Exit code: 0 written, 2 a mistake, or images that don't come back; nothing is written then.
"""

import pathlib
import time
from typing import Annotated

from absl import flags

from nvae_tf import command_line
from nvae_tf.errors import require, start_tensorflow_quietly

_TOLERANCE_HELP = (
    "How far another machine's numbers may be off, relative to 1 + their size; 1e-2 for GPUs with TF32. The file grows "
    "with it."
)


def main(
    input: Annotated[str | None, "A folder of pictures, or a file; may stand without --input=."] = None,
    output: Annotated[str | None, "The file to write, .nvc."] = None,
    workdir: Annotated[str | None, f"{command_line.RUN_HELP} Or a .keras file."] = None,
    chunk: Annotated[int, "Images of a chunk, which is decoded by itself; larger ones are smaller in all.", 1] = 500,
    tolerance: Annotated[float, _TOLERANCE_HELP] = 2.0**-16,
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
    require("constriction", "compress")
    start_tensorflow_quietly()
    from nvae_tf.compression.codec import model_at, write_stream
    from nvae_tf.compression.image_sets import read_set
    from nvae_tf.files import atomic_file
    from nvae_tf.progress import StatusLine, counted

    codec, class_names = model_at(workdir)
    levels, names, labels, about = read_set(input, codec.model.config, class_names)
    index = {} if names is None else {"names": names}
    index |= {} if labels is None else {"labels": labels.tolist()}
    status, started, encoded = StatusLine(), time.monotonic(), []
    dimensions = levels[0].size

    def progress(count, encoded_chunk):
        encoded.append((count, encoded_chunk))
        done, size = sum(each for each, _ in encoded), sum(len(each.data) for _, each in encoded)
        speed, bits = done / (time.monotonic() - started), 8 * size / (done * dimensions)
        text = f"{done:,} of {len(levels):,} images, {speed:,.3g} images/s, {bits:.4f} bits/dim"
        status.show_if_due(text, done / len(levels))

    place.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(place) as partial, partial.open("wb") as file:
        about = about | {"model": workdir}
        write_stream(file, codec, levels, labels, about, index, chunk, tolerance, verify, progress)
    size, bits = place.stat().st_size, sum(8 * len(each.data) for _, each in encoded)
    sides, first = sum(8 * each.sides for _, each in encoded), sum(each.first for _, each in encoded)
    # What an image costs that does not begin a chunk.
    later = (bits - sides - first) / max(1, len(levels) - len(encoded))
    status.keep(
        f"{counted(len(levels), 'image')} in {size:,} bytes: {8 * size / len(levels):,.2f} bits an image, "
        f"{8 * size / len(levels) / dimensions:.4f} bits/dim\n"
        f"    values near a tie, for other machines   {sides / bits:.2%}\n"
        f"    the first image of each chunk           {max(0.0, first - later * len(encoded)) / bits:.2%}\n"
        f"    header, index, names and classes        {(8 * size - bits) / (8 * size):.2%}\n"
        f"{'decoded again: the same pixels; ' if verify else 'not verified; '}written to {place}"
    )


def _description(path: pathlib.Path) -> str:
    """What the header of a file says, and the sizes of its parts."""
    from nvae_tf.compression import container
    from nvae_tf.errors import wrap_read_errors

    with wrap_read_errors(f"{path}: ", ""), path.open("rb") as file:
        archive = container.read(file)
    lines = [f"{name}: {value}" for name, value in archive.header.items()]
    lines += [f"{name}: {len(archive.index[name]):,}" for name in ("names", "labels") if name in archive.index]
    sizes, images = archive.index["chunks"], archive.header["images"]
    lines.append(f"chunks: {len(sizes)} of {sum(sizes):,} bytes in all, {8 * sum(sizes) / images:.2f} bits an image")
    return "\n".join([f"{path}: {archive.size:,} bytes", *(f"  {line}" for line in lines)])


def run() -> None:
    """The command `nvae-compress`."""
    command_line.name_argument("input")
    command_line.run(main, flags)


if __name__ == "__main__":
    run()
