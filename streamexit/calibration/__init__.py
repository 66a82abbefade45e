"""Measuring a network on data, and fitting exit policies to what was measured."""
