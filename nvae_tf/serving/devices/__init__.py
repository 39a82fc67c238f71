"""TFLite files: functions with noise as an input, conversion, quantisation, comparison with the model."""
