"""Side-by-side measurements; each prints its own table."""
