"""TFLite files: functions with noise as an input, conversion, quantization, comparison with the model."""
