"""What the command can choose from; without TensorFlow, so that a mistake is told within a moment."""

# In which kernels are kept; all is computed in float32.
WEIGHTS = ("float32", "bfloat16", "float16")
