"""Voxels, millimetres and SUV: files in, checked cohorts out; no tensor, no network, no cluster."""
