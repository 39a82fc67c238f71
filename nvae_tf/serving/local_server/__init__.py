"""A small model server for trials and tests: TensorFlow Serving's protocols on TensorFlow's own session loader.

It is written in Python and runs in one process. Production is TensorFlow Serving's own binary,
`tensorflow_model_server`, which serves the same folders to the same clients.
"""
