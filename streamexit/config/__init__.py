"""The configuration of a node: a YAML file, checked before anything starts."""
