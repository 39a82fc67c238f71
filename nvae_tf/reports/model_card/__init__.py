"""The model card of a run folder: its README.md, in the form that Hugging Face reads."""

from nvae_tf.reports.model_card.card_file import MARKER, write_model_card
from nvae_tf.reports.model_card.origin import Origin, origin_from_text, origin_of_run, read_origin, write_origin

__all__ = [
    "MARKER",
    "Origin",
    "origin_from_text",
    "origin_of_run",
    "read_origin",
    "write_model_card",
    "write_origin",
]
