"""Normalizing flows of the posterior."""

from nvae_tf.flows.masked_autoregressive import FlowCells, FlowPairs, causal_mask

__all__ = ["FlowCells", "FlowPairs", "causal_mask"]
