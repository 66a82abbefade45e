"""Video streams through early-exit networks, each held at its own compute budget."""
