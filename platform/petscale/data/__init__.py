"""Cohorts made: ``petscale ingest``, ``phantom`` and ``simulate`` turn files and phantoms into plans of cases."""
