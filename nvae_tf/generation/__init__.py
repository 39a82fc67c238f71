"""What people do with a trained model's latents and pictures, and how it is shown."""
