"""Scores that carry their rule: image quality, regional uptake, and each paper's conventions (``presets``)."""
