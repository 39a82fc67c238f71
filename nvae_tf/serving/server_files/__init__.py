"""What TensorFlow Serving is started with: versions, labels, fitted batching, Docker."""
