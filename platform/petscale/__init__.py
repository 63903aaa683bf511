"""Command line, runs and reports: everything that knows Ray."""
