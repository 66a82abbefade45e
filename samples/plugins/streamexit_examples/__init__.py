"""A network, a scorer, a source and a sink for streamexit; pyproject.toml says which is which."""
