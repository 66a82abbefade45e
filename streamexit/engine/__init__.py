"""The engine: one thread per device that forms batches, runs stages and lets frames leave."""
