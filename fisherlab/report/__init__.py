"""The face of a comparison: the table on the console and the page for a browser."""

from fisherlab.report.definitions import METRICS, THEOREMS, Metric
from fisherlab.report.page import Picture, write_page
from fisherlab.report.table import console_table

__all__ = ["METRICS", "THEOREMS", "Metric", "Picture", "console_table", "write_page"]
