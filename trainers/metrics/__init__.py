"""Scores that carry their definition: image quality, regional uptake, and each paper's conventions (``presets``)."""
