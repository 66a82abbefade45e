"""From a checked configuration to what could start."""
