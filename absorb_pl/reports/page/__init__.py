"""The page of a study: one file with its tables, the words behind every rate, and nothing to install or to serve."""

from absorb_pl.reports.page.page import PAGE, page_of, write_page

__all__ = ["PAGE", "page_of", "write_page"]
