"""Methods as compositions of parts: PAINT, SC-SDPO and everything that they are compared with."""

from selfdistill.methods.method import Method, as_data
from selfdistill.methods.registry import build, names, summary
from selfdistill.methods.settings import with_settings

__all__ = ["Method", "as_data", "build", "names", "summary", "with_settings"]
