"""The Lightning rooms: the module, what its checkpoints hold, and its callbacks."""
