"""Budgets held per stream. Pure: decisions in, thresholds out, no clock."""
