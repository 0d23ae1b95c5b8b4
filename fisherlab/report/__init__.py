"""The face of a comparison: the table on the console and the page for a browser."""

from fisherlab.records.definitions import METRICS, THEOREMS, Metric
from fisherlab.report.page import Picture, write_page
from fisherlab.report.table import console_table, html_table
from fisherlab.report.tabular import Column, Contents, Definition, Tabular, defined, write_tables

__all__ = [
    "METRICS",
    "THEOREMS",
    "Column",
    "Contents",
    "Definition",
    "Metric",
    "Picture",
    "Tabular",
    "console_table",
    "defined",
    "html_table",
    "write_page",
    "write_tables",
]
