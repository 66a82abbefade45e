"""Networks with exits, and the pipeline folders that carry them."""
