"""Training and validation with Lightning: the module around a network, its adversary, callbacks, and resuming."""
