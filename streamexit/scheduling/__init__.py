"""Exit policies: a scorer, a share rule and the threshold solver. Pure; usable on its own."""
