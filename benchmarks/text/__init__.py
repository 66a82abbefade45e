"""Traces of text classifiers with exits: the scheduler sees evidence, never words."""
