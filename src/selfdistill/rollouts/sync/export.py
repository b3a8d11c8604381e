"""The policy's weights as folders that an engine can load: the adapters alone, or all weights.

In: a :class:`~selfdistill.models.loading.Policy`. Out: a folder in PEFT's or transformers' format, complete or absent.
Nothing is merged, rounded or looked up anywhere, and the policy stays as it is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from selfdistill.errors import RolloutError
from selfdistill.models.folders import complete_folder
from selfdistill.models.loading import Policy, resolve_source
from selfdistill.parallel.sharding import state_of

SHARD = "5GB"
"""Largest file: what is copied from the device at a time."""


def export_adapter(policy: Policy, folder: Path) -> int:
    """Write the policy's LoRA adapters, as they are, in PEFT's format.

    Returns:
        The folder's size in bytes.

    Raises:
        RolloutError: the folder cannot be written.
    """
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors.torch import save_file

    if not isinstance(policy.model, PeftModel):
        raise RolloutError("this policy trains all of its weights and has no adapters to export; set model.lora")
    # "auto" would look the base model's vocabulary up on the hub.
    weights = get_peft_model_state_dict(policy.model, state_dict=state_of(policy.model), save_embedding_layers=False)
    # Neither may the engine go and look for a base: it serves one.
    config = policy.model.peft_config["default"].to_dict() | {"base_model_name_or_path": None, "inference_mode": True}
    with _writing(folder) as partial:
        _write_json(partial / "adapter_config.json", config)
        contiguous = {name: weight.detach().contiguous() for name, weight in weights.items()}
        save_file(contiguous, partial / "adapter_model.safetensors", metadata={"format": "pt"})
    return _size(folder)


def export_weights(policy: Policy, folder: Path) -> int:
    """Write all weights, configuration and tokenizer in transformers' format, the output head as weights of its own.

    Of a policy with adapters these are the base's weights, without them. Why an untied head: vLLM on a CPU keeps a
    packed copy of the head, which only a weight of the head's own name replaces.

    Returns:
        The folder's size in bytes.

    Raises:
        RolloutError: the folder cannot be written.
    """
    model: Any = _base_of(policy)
    weights = dict(_plain_weights(model))
    name, own = output_head(model)
    head = weights.get(name, own)
    # A copy: transformers drops one of two names for the same memory.
    weights[name] = head.detach().clone() if is_tied(model) else head
    with _writing(folder) as partial, _no_progress_bars():
        model.save_pretrained(str(partial), state_dict=weights, max_shard_size=SHARD)
        policy.tokenizer.save_pretrained(str(partial))
        _untie(partial / "config.json")
    return _size(folder)


def base_folder(policy: Policy, folder: Path) -> Path:
    """Return what an engine has to be started from for this policy.

    That is the policy's own model where it will do. A head that is tied to the embeddings will not do for full training
    (see :func:`export_weights`), and a policy that was merged from adapters lies nowhere: these are written to
    ``folder``, which must happen before training changes the weights.

    Raises:
        RolloutError: the folder cannot be written.
    """
    source = _own_folder(policy)
    if source is not None and (policy.has_adapters or not is_tied(_base_of(policy))):
        return source
    export_weights(policy, folder)
    return folder.absolute()


def is_tied(model: Any) -> bool:
    """Whether a transformers model's output head and input embeddings are the same weights."""
    return output_head(model)[1] is model.get_input_embeddings().weight


def output_head(model: Any) -> tuple[str, nn.Parameter]:
    """Return the output head's weight of a transformers causal language model, and the name that it goes by."""
    head: Any = model.get_output_embeddings()
    for name, module in model.named_modules():
        if module is head:
            return f"{name}.weight", head.weight
    raise RolloutError(f"{type(model).__name__} has no output head; engines serve causal language models only")


def _own_folder(policy: Policy) -> Path | None:
    """Return the folder of the model that the policy was loaded from; None: it lies in none as such."""
    source = resolve_source(policy.config.path)
    local = Path(source)
    if local.is_dir():
        return local.absolute() if (local / "config.json").is_file() else None
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(source, "config.json", revision=policy.config.revision or "main")
    return Path(cached).parent if isinstance(cached, str) else None


def _base_of(policy: Policy) -> Any:
    """Return the policy's transformers model; adapters, if any, sit inside it."""
    model: Any = policy.model
    return model.get_base_model() if policy.has_adapters else model


def _plain_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield a model's weights by their names without adapters; those of adapters are left out."""
    for name, weight in state_of(model).items():
        if ".lora_" not in name:
            yield name.replace(".base_layer.", "."), weight


def _untie(config: Path) -> None:
    """Say in a model's configuration that the head has its own weights."""
    settings = json.loads(config.read_text(encoding="utf-8"))
    settings["tie_word_embeddings"] = False
    text = settings.get("text_config")
    if isinstance(text, dict) and "tie_word_embeddings" in text:
        text["tie_word_embeddings"] = False
    _write_json(config, settings)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True, default=_listed) + "\n", encoding="utf-8")


def _listed(value: Any) -> Any:
    """Return what JSON has for PEFT's sets and enumerations."""
    return sorted(value) if isinstance(value, (set, frozenset)) else str(value)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@contextmanager
def _writing(folder: Path) -> Iterator[Path]:
    """Yield a folder that becomes ``folder`` when all is written; what goes wrong becomes one sentence."""
    from safetensors import SafetensorError

    try:
        with complete_folder(folder) as partial:
            yield partial
    except (OSError, SafetensorError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise RolloutError(
            f"the weights for the engine cannot be written to {str(folder)!r} ({reason}); free space there, or set "
            "rollouts.server.folder to a folder with room that the engines can read"
        ) from error


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Keep transformers' bar per file out of our own display."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
