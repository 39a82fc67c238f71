"""Images and latents of a trained model: samples, reconstructions, paths, variants, and their files."""
