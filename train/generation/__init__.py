"""The modes of `train.generate`, a module each: its docstring is its manual page, its flags and `main` are in it."""
