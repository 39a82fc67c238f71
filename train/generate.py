"""What a trained model makes: samples, reconstructions, ways between pictures, variants, latents.

    python -m train.generate MODE --workdir=runs/digits --output=...
    python -m train.generate MODE --help
    python -m train.generate --workdir=runs/digits --output=samples.png

Without a mode it draws samples.

Exit code: 0 done, 2 a mistake in the command.
"""

import contextlib
import importlib
import sys

from absl import flags

from nvae_tf import command_line
from nvae_tf.errors import exit_on_user_error
from nvae_tf.setting_checks import check_choice

MODES = {
    "sample": "images of latents from the prior",
    "reconstruct": "what the model keeps of pictures, all of it or what the upper latent groups hold",
    "interpolate": "the way from picture to picture, as a picture or an animation",
    "vary": "variants of pictures that share the latents of the upper groups",
    "encode": "pictures -> a file of latents",
    "decode": "a file of latents -> pictures",
    "nearest": "samples beside the training images that are most like them",
}
_HELP = ("h", "help", "helpshort", "helpfull")


def overview() -> str:
    """The manual page of all modes."""
    lines = [f"  {mode:<12} {text}" for mode, text in MODES.items()]
    return "\n".join([__doc__.strip(), "", "Modes, each with a manual page of its own:", *lines])


def run() -> None:
    """The command `nvae-generate`: looks at the mode, and hands over to its module in `train/generation/`."""
    first = sys.argv[1] if len(sys.argv) > 1 else "-"
    if first.startswith("-") and first.lstrip("-") in _HELP:
        with contextlib.suppress(BrokenPipeError):
            print(overview(), flush=True)
        return
    mode = "sample"
    if not first.startswith("-"):
        with exit_on_user_error():
            check_choice("the mode of train.generate", first, MODES, "not one of the modes")
        mode = sys.argv.pop(1)
    command_line.run(importlib.import_module(f"train.generation.{mode}").main, flags)


if __name__ == "__main__":
    run()
