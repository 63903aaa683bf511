"""One self-contained HTML page about one run: pictures, scores with their rules, training, and how to repeat it."""

from petscale.reporting.page import CaseImages, ReportData, write_report

__all__ = ["CaseImages", "ReportData", "write_report"]
