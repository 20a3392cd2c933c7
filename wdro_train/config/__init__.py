"""From a configuration to objects, folders and processes."""
