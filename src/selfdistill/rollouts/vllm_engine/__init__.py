"""vLLM in this process (``rollouts.engine: vllm``), asleep while the trainer works."""

from selfdistill.rollouts.vllm_engine.engine import VllmEngine

__all__ = ["VllmEngine"]
