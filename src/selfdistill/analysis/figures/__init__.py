"""Figures of a report, drawn by matplotlib: each a chart with its caption, its words and its numbers."""
