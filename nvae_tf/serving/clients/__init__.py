"""What asks a model server: clients of both protocols and what the client command needs; none of the model's code."""
