"""Weights that stand alone: one file with a network and what must be known to use it, made, shown and applied."""
