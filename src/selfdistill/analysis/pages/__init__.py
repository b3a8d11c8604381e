"""Self-contained HTML pages: no network, no storage, and text from a model is text."""

from selfdistill.analysis.pages.page import asset, data_block, page, text, visible

__all__ = ["asset", "data_block", "page", "text", "visible"]
