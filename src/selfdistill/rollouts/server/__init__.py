"""Running vLLM servers as an engine, over HTTP.

Work --split--> request --http--> answer --outbox--> Completion; what fails is asked for again (:mod:`.dispatch`).
"""

from __future__ import annotations

from selfdistill.rollouts.server.control import ServerControl
from selfdistill.rollouts.server.engine import ServerEngine

__all__ = ["ServerControl", "ServerEngine"]
