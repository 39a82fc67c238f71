"""Flags that several modes of `train.generate` have, each defined here once, and on the page of the mode that asks."""

import pathlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

from absl import flags

from nvae_tf import command_line
from nvae_tf.checkpoint_choice import CHECKPOINT_HELP, CHECKPOINTS
from nvae_tf.generation.output_place import OutputPlace, output_place
from nvae_tf.setting_checks import check
from nvae_tf.train_config import LARGEST_SEED


class RunFlags(NamedTuple):
    """Which run, and where to write."""

    workdir: flags.FlagHolder
    checkpoint: flags.FlagHolder
    output: flags.FlagHolder
    overwrite: flags.FlagHolder
    seed: flags.FlagHolder

    def place(self, kinds: Sequence[str]) -> OutputPlace:
        """Where to write, once run folder and output have been looked at, see `output_place`."""
        command_line.check_run_folder(self.workdir.value)
        return output_place(self.output.value, kinds, self.overwrite.value)

    def config(self):
        """The run's settings, before its model is loaded."""
        from nvae_tf.training.run_folder import RunFolder, read_run_config

        return read_run_config(RunFolder(pathlib.Path(self.workdir.value)))

    def load(self):
        """The run's model, see `load_run`."""
        from nvae_tf.training.loading import load_run

        return load_run(self.workdir.value, self.checkpoint.value)


class PictureFlags(NamedTuple):
    """Which pictures."""

    input: flags.FlagHolder
    resize: flags.FlagHolder
    convert: flags.FlagHolder
    count: flags.FlagHolder | None
    indices: flags.FlagHolder
    split: flags.FlagHolder
    data_path: flags.FlagHolder


def define_run(module: str, output: str, seed: str = "Of all draws.") -> RunFlags:
    """--workdir, --checkpoint, --output, --overwrite, --seed; `output` and `seed` say what they are for."""
    return RunFlags(
        flags.DEFINE_string("workdir", None, "Run folder of train.main.", required=True, module_name=_owner(module)),
        flags.DEFINE_enum("checkpoint", CHECKPOINTS[0], CHECKPOINTS, CHECKPOINT_HELP, module_name=_owner(module)),
        flags.DEFINE_string("output", None, output, required=True, module_name=_owner(module)),
        flags.DEFINE_boolean("overwrite", False, "Replace what is at --output already.", module_name=_owner(module)),
        flags.DEFINE_integer("seed", 1, seed, lower_bound=0, upper_bound=LARGEST_SEED, module_name=_owner(module)),
    )


def define_pictures(module: str, count: str | None) -> PictureFlags:
    """--input for pictures from outside, and the flags that choose pictures of the run's data set."""
    return PictureFlags(
        flags.DEFINE_multi_string(
            "input",
            None,
            "Pictures from outside: a file, a folder with all that is in it, or several with commas. Without it, "
            "pictures of the run's data set are taken",
            module_name=_owner(module),
        ),
        flags.DEFINE_enum(
            "resize",
            None,
            ["crop", "stretch"],
            "How pictures of --input come to the model's size; if not given, as in training.",
            module_name=_owner(module),
        ),
        flags.DEFINE_boolean(
            "convert",
            None,
            "Convert pictures of --input that have other channels; if not given, as in training.",
            module_name=_owner(module),
        ),
        count and flags.DEFINE_integer("count", None, count, lower_bound=1, module_name=_owner(module)),
        flags.DEFINE_list(
            "indices", None, "Numbers of pictures of the data set, counted from 0: 3,17.", module_name=_owner(module)
        ),
        flags.DEFINE_enum("split", "test", ["test", "train"], "Part of the data set.", module_name=_owner(module)),
        flags.DEFINE_string("data_path", None, command_line.DATA_PATH_HELP, module_name=_owner(module)),
    )


def define_temperature(module: str) -> flags.FlagHolder:
    """--temperature."""
    return flags.DEFINE_string(
        "temperature",
        "1.0",
        "What multiplies the priors' sigma, greater than 0: one number, or one for every scale (the smallest first) or "
        "every latent group (the top one first), as 0.7,0.8.",
        module_name=_owner(module),
    )


def define_batch_norm_iterations(module: str) -> flags.FlagHolder:
    """--batch_norm_iterations."""
    return flags.DEFINE_integer(
        "batch_norm_iterations",
        0,
        "Readjust the batch-norm statistics to the temperature with so many batches before samples are drawn (the "
        "paper takes 500), in a copy of the model; 0 for none.",
        lower_bound=0,
        module_name=_owner(module),
    )


def define_kept_groups(module: str, default: int | None, text: str) -> flags.FlagHolder:
    """--kept_groups."""
    return flags.DEFINE_integer("kept_groups", default, text, lower_bound=0, module_name=_owner(module))


def define_mean(module: str) -> flags.FlagHolder:
    """--mean."""
    text = "Take the posterior's means as a picture's latents, not draws."
    return flags.DEFINE_boolean("mean", False, text, module_name=_owner(module))


def define_columns(module: str, default: int | None, text: str) -> flags.FlagHolder:
    """--columns."""
    return flags.DEFINE_integer("columns", default, text, lower_bound=1, module_name=_owner(module))


def temperature_of(flag: flags.FlagHolder) -> float | list[float]:
    """The number, or the list of numbers.

    Raises:
      ValueError: one is no number, or not greater than 0 and finite.
    """
    values = [_temperature(word) for word in flag.value.split(",")]
    return values if len(values) > 1 else values[0]


def numbers_of(flag: flags.FlagHolder) -> list[int] | None:
    """The whole numbers of a list such as --indices=3,17; None where it is not given.

    Raises:
      ValueError: one is no whole number from 0.
    """
    if flag.value is None:
        return None
    wrong = [word for word in flag.value if not word.strip().isdecimal()]
    check(not wrong, f"--{flag.name}={','.join(flag.value)}: {wrong[:1]} is not a whole number from 0")
    return [int(word) for word in flag.value]


def _owner(module: str) -> str:
    """Under which name absl knows a module's flags: that of a module which is run itself is its file's."""
    return sys.argv[0] if module == "__main__" else module


def _temperature(word: str) -> float:
    try:
        value = float(word)
    except ValueError:
        raise ValueError(f"--temperature: {word!r} is not a number; several are written 0.7,0.8") from None
    check(0.0 < value < float("inf"), f"--temperature={word}: must be greater than 0; 1 is the model as trained")
    return value
