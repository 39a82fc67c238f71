"""Makes a run folder of a published PyTorch checkpoint (.pt).

    nvae-import-torch-checkpoint --checkpoint=cifar10.pt --output=runs/cifar10
    nvae-import-torch-checkpoint --checkpoint=mnist.pt --output=runs/mnist --data_source=idx --data_path=idx

Every other command accepts the run folder, nvae-train to continue the training; a new run starts from its weights with
train.initialize_from. It is written atomically, with the settings (config.json), the checkpoint at the file's step,
origin.json with the file's name, SHA-256 and license, and the model card.

The optimizer's moments are not taken over: they start at zero, at the file's step. What had to be assumed about the
length of the run is printed. --report=FILE gets a table of every tensor in the file and what it fills, or why it is
left out; also where tensors do not fit and nothing is imported.

Files are read with torch's safe reader, which builds no object of the file's choice. Needs PyTorch (`make torch`); see
docs/published_weights.md. Exit code: 0 done, 2 a mistake in the command or a file that does not fit.
"""

import os
import pathlib
import shlex
from typing import Annotated

from nvae_tf import command_line, errors, files
from nvae_tf.config import check_choice
from nvae_tf.data.sources import SOURCES


def main(
    checkpoint: Annotated[str, "The published file, .pt."],
    output: Annotated[str, "The run folder; new or empty."],
    without_optimizer: Annotated[bool, "No effect: the optimizer's moments are never imported."] = False,
    data_path: Annotated[str | None, "Where the images are, for the run's settings (data.path)."] = None,
    data_source: Annotated[str | None, "The kind of source, if not the usual one: idx, folder ..."] = None,
    license: Annotated[str | None, "License of the weights, for the model card; by default the file's own."] = None,
    report: Annotated[str | None, "A new file for the table of every tensor, .csv."] = None,
) -> None:
    """Imports the file and prints what has become of it, and the next commands."""
    file, folder, table = pathlib.Path(checkpoint), pathlib.Path(output), report and pathlib.Path(report)
    if license is not None and len(license.strip().splitlines()) != 1:
        raise ValueError(f"--license={license!r}: must be one line, such as cc-by-nc-sa-4.0, or be left out")
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; give the path of a published checkpoint (.pt)")
    files.check_new_folder(folder, f"--output={output}")
    if table:
        files.check_new_file(table, f"--report={report}")
        one, other = table.resolve(), folder.resolve()
        if one.is_relative_to(other) or other.is_relative_to(one):
            raise ValueError(f"--report={report}: in the way of --output={output}; name another file")
    if data_source is not None:
        check_choice("--data_source", data_source, SOURCES)
    errors.require("torch", "torch")
    errors.start_tensorflow_quietly()
    from nvae_tf.published.conversion import import_run
    from nvae_tf.reports.model_card import write_model_card
    from nvae_tf.runs.run_folder import RunFolder

    print(f"Importing {file} ...", flush=True)
    changes = {"data_path": data_path, "data_source": data_source, "license": license and license.strip()}
    imported = import_run(file, folder, report=table, **changes)
    write_model_card(RunFolder(folder), imported.parameters)
    config, place = imported.config, shlex.quote(str(folder))
    print(f"Imported to {folder}: {config.data.name}, step {imported.step:,}.")
    if imported.defaults:
        print(f"Not in the file, so this project's defaults: {', '.join(imported.defaults)}.")
    if imported.assumed is not None:
        print(imported.assumed)
    needed = SOURCES[config.data.source][1] if config.data.path is None else None
    if needed:
        print(f"Its images, {needed}, are needed to evaluate it or to train it on.")
    batch, a_step = config.train.batch_size, imported.images and imported.images.a_step
    if a_step is not None and a_step != batch:
        print(f"It was trained with {a_step} images a step: {a_step // batch} GPUs with {batch} each.")
    print(f"    nvae-evaluate --workdir={place}{' --data_path=PATH' if needed else ''}")
    data = " --config.data.path=PATH" if needed else ""
    print(f"    nvae-train --config={place}/config.json --workdir={place}{data}")
    if data_path is not None and not os.path.exists(os.path.expanduser(data_path)):
        print(f"note: there is nothing at --data_path={data_path} yet; the run will look for its images there")


run = command_line.command(main)
