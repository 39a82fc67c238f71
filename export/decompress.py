"""Writes the images of a file of nvae-compress, exactly as they were.

    nvae-decompress set.nvc --output=pictures
    nvae-decompress set.nvc --output=set.npy

Output is a new folder of PNG files with the names of the pictures, or an array, .npy, or .npz with names and classes.
The model is looked for where it was when the file was made; --workdir says where it is now: a run folder, a .keras
file, one version of a SavedModel (nvae-export). It must have the same weights.

Exit code: 0 the same pixels, 2 a mistake, a damaged file, another model, or a machine whose numbers differ too much
from the numbers of the one that made the file; nothing is written then.
"""

import pathlib
from typing import Annotated

from nvae_tf import command_line
from nvae_tf.compression.container import unpacked
from nvae_tf.errors import start_tensorflow_quietly, wrap_read_errors


def main(
    input: Annotated[str, "The file, .nvc; may stand without --input=."],
    output: Annotated[str, "A new folder, or a file .npy or .npz."],
    workdir: Annotated[str | None, "Where the model is; without it, where it was when the file was made."] = None,
) -> None:
    """Decompresses."""
    from nvae_tf.generation.image_sets import check_output, write_set

    data = pathlib.Path(input).read_bytes()
    with wrap_read_errors(f"{input}: ", ""):
        header, _ = unpacked(data)
    start_tensorflow_quietly()
    from nvae_tf.models.lossless import decompress
    from nvae_tf.progress import ImageProgress, StatusLine, counted
    from nvae_tf.serving.saved_model import coding_model

    check_output(pathlib.Path(output))
    needed = f"{input}: needs the model with weights of SHA-256 {header['sha256']}..."
    if not (workdir or header.get("model")):
        raise ValueError(f"{needed}; say where it is: --workdir=RUN")
    with wrap_read_errors(f"{needed}, and ", "" if workdir else "; say where it is: --workdir=RUN"):
        source = coding_model(workdir or header["model"])
    status = StatusLine()
    progress = ImageProgress(status.show_if_due, header["images"])

    def chunks():
        with wrap_read_errors(f"{input}: ", ""):
            for levels in decompress(source, data):
                progress.add(len(levels))
                yield levels

    write_set(pathlib.Path(output), chunks(), source.model.config.num_bits, header)
    left_out = "labels" in header and "names" not in header and not output.lower().endswith(".npz")
    classes = "; their classes are left out, a .npz file would have them" if left_out else ""
    status.print(f"{counted(header['images'], 'image')} in {output}{classes}")


run = command_line.command(main, words="input")
