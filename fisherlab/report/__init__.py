"""The face of results: tables on the console, and pages for a browser."""

from fisherlab.records.definitions import METRICS, THEOREMS, Column, Definition, Metric, defined
from fisherlab.report.console import console_table, html_table
from fisherlab.report.html import Contents, Tabular, write_page, write_tables
from fisherlab.runs.save import Picture

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
