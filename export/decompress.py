"""Writes the images of a file of nvae-compress, exactly as they were.

    nvae-decompress set.nvc --output=pictures
    nvae-decompress set.nvc --output=set.npy

Output is a new folder of PNG files with the names of the pictures, or an array, .npy, or .npz with names and classes.
The model is looked for where it was when the file was made; --workdir says where it is now: a run folder, a .keras
file, one version of a SavedModel (nvae-export). It must have the same weights.

Exit code: 0 the same pixels, 2 a mistake, a damaged file, another model, or a machine whose numbers differ too much
from those of the one that made the file; nothing is written then.
"""

import pathlib
from typing import Annotated

from absl import flags

from nvae_tf import command_line
from nvae_tf.errors import require, start_tensorflow_quietly, wrap_read_errors


def main(
    input: Annotated[str, "The file, .nvc; may stand without --input=."],
    output: Annotated[str, "A new folder, or a file .npy or .npz."],
    workdir: Annotated[str | None, "Where the model is; without it, where it was when the file was made."] = None,
) -> None:
    """Decompresses."""
    from nvae_tf.compression import container

    place, target = pathlib.Path(input), pathlib.Path(output)
    require("constriction", "compress")
    with wrap_read_errors(f"{place}: ", ""), place.open("rb") as file:
        archive = container.read(file)
    start_tensorflow_quietly()
    from nvae_tf.compression.codec import check_fits, model_at, read_chunk
    from nvae_tf.compression.image_sets import check_output, write_set
    from nvae_tf.progress import ImageProgress, StatusLine, counted

    check_output(target)
    sha256, known = archive.header["sha256"], archive.header.get("model")
    needed = f"{place}: needs the model with weights of SHA-256 {sha256[:16]}..."
    if not (workdir or known):
        raise ValueError(f"{needed}; say where it is: --workdir=RUN")
    try:
        codec, _ = model_at(workdir or known)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{needed}, and {error}; say where it is: --workdir=RUN") from None
    with wrap_read_errors(f"{place}: ", ""):
        check_fits(archive, codec)
    status = StatusLine()
    progress = ImageProgress(status.show_if_due, archive.header["images"])

    def chunks():
        with place.open("rb") as file:
            for number in range(len(archive.chunks)):
                with wrap_read_errors(f"{place}: ", ""):
                    levels = read_chunk(file, archive, codec, number)
                progress.add(len(levels))
                yield levels

    write_set(target, chunks(), codec.model.config.num_bits, archive.header, archive.index)
    status.keep(f"{counted(archive.header['images'], 'image')} in {target}")


def run() -> None:
    """The command `nvae-decompress`."""
    command_line.name_argument("input")
    command_line.run(main, flags)


if __name__ == "__main__":
    run()
