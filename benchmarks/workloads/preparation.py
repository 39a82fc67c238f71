"""Writes what workloads start from, in a process of its own so that their memory is not that of the writing.

python -m benchmarks.workloads.preparation run|published|saved_model PRESET FOLDER makes in FOLDER

    run            a run folder of an untrained model, `run`
    published      a file of the published form, with weights and moments as `run` has them, `published.pt`
    saved_model    a SavedModel with the signature `sample`, folded, `saved_model`
"""

import argparse
import pathlib
import sys

from benchmarks.exported_sampling import write_sampling
from benchmarks.workloads.commands import run_python
from benchmarks.workloads.untrained import config_of, suit_process, untrained_model
from nvae_tf.config import config_to_json
from nvae_tf.files import atomic_write
from nvae_tf.layers import FoldedPass, folded_weights
from nvae_tf.models.nvae import model_for_training
from nvae_tf.published.torch_file import OWN_KEY
from nvae_tf.training.checkpoints import TrainingState
from nvae_tf.training.run_folder import RunFolder

# Any: published files are of a step, too.
_STEP = 1000


def write_run(preset: str, folder: pathlib.Path) -> None:
    """A run folder with a checkpoint of the first weights and of moments that are zero."""
    suit_process()
    config, run = config_of(preset), RunFolder(folder / "run")
    made = model_for_training(config, steps_per_epoch=_STEP, total_steps=100 * _STEP)
    made.model.optimizer.build(made.model.trainable_variables)
    made.model.data_initialised.assign(1.0)
    made.model.optimizer.iterations.assign(_STEP)
    TrainingState(run.checkpoints, made.model, made.model.optimizer, keep=1, others=made.variables).save(_STEP)
    atomic_write(run.config_file, config_to_json(config))


def write_published(preset: str, folder: pathlib.Path) -> None:
    """A published file: what this project exports, without what only its own files have besides."""
    import torch

    write_run(preset, folder)
    file = folder / "published.pt"
    run_python("export.export_torch_checkpoint", f"--workdir={folder / 'run'}", f"--output={file}")
    with torch.serialization.safe_globals([argparse.Namespace]):
        content = torch.load(file, weights_only=True)
    del content[OWN_KEY]
    torch.save(content, file)


def write_saved_model(preset: str, folder: pathlib.Path) -> None:
    """A SavedModel that can do nothing but draw."""
    model = untrained_model(preset)
    folded = folded_weights(model.stacks, "float32")
    write_sampling(model, lambda: FoldedPass(traced_inline=True, folded=folded), folder / "saved_model")


WRITERS = {"run": write_run, "published": write_published, "saved_model": write_saved_model}


def main(what: str, preset: str, folder: str) -> None:
    WRITERS[what](preset, pathlib.Path(folder))


if __name__ == "__main__":
    main(*sys.argv[1:])
