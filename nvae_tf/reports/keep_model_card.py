"""The model card as the commands of `train` keep it up to date: never at the cost of their work."""

import math
from collections.abc import Callable

import nvae_tf
from nvae_tf.errors import first_line
from nvae_tf.reports.model_card import write_model_card
from nvae_tf.training.run_folder import RunFolder


def keep_model_card(folder: RunFolder, model: nvae_tf.NVAE, tell: Callable[[str], None]) -> None:
    """Writes the run folder's README.md; where that fails, a line says so and the command goes on.

    Args:
      folder: the run's.
      model: its model, with all weights made.
      tell: takes a line for people.
    """
    try:
        write_model_card(folder, sum(math.prod(weight.shape) for weight in model.trainable_variables))
    except (OSError, ValueError) as error:
        tell(f"the model card was not written: {first_line(error)}")
