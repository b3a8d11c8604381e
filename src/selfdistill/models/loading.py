"""The policy: the model that is trained, with its tokenizer and chat format; loaded, adapted by LoRA, saved.

In: a :class:`ModelConfig`, the ``model`` section of a recipe. Out: a :class:`Policy`, and from it a folder that
transformers (or PEFT) loads without this package. LoRA: Hu et al., arXiv 2106.09685; rank, alpha and targets as PAINT
publishes them (arXiv 2604.26573).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import BaseModel, Field
from torch import nn

from selfdistill.errors import ModelError, nearest
from selfdistill.models.folders import complete_folder
from selfdistill.randomness import derive
from selfdistill.validation import SECTION

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from selfdistill.rollouts.chat import ChatFormat

ATTENTION_AND_MLP = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The linear layers of a Llama- or Qwen-like block: what PAINT adapts."""


class LoraConfig(BaseModel):
    """Low-rank adapters: W x + (alpha / r) B A x, only A and B trained. Defaults: PAINT's."""

    model_config = SECTION

    r: int = Field(64, ge=1)
    """Rank of A and B."""
    alpha: float = Field(128, gt=0)
    """The adapter's output is scaled by alpha / r."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """On the adapter's input. The published setting is none: with it, one model would give a prompt two logits."""
    targets: tuple[str, ...] = Field(ATTENTION_AND_MLP, min_length=1)
    """Last part of the names of the linear layers that get an adapter."""


class ModelConfig(BaseModel):
    """Which model, and how it is held in memory."""

    model_config = SECTION

    path: str = Field("embedded", min_length=1)
    """``embedded``, ``smollm2``, a local folder (a model, or LoRA adapters, which are merged), or a hub id."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the weights. LoRA parameters are float32 in either case."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """``auto``: CUDA when there is a device, else the CPU."""
    attention: Literal["sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention"] = "sdpa"
    """transformers' ``attn_implementation``."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, a third more time. Acts in ``train()`` mode only."""
    trust_remote_code: bool = False
    """Run Python files that come with the model. Off: such a model is refused."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    lora: LoraConfig | None = None
    """Adapters to train; None trains all weights."""


@dataclass(frozen=True, slots=True, eq=False)
class Policy:
    """The model that is trained, and what turns text into its ids and back. Built only by :func:`load_policy`."""

    model: PreTrainedModel | PeftModel
    """In ``eval()`` mode, on :attr:`device`. Without LoRA every weight is trainable, with it the adapters only."""
    tokenizer: PreTrainedTokenizerBase
    chat: ChatFormat
    config: ModelConfig
    device: torch.device

    @property
    def has_adapters(self) -> bool:
        """Whether LoRA adapters are trained (then the initial model is this model with its adapters off)."""
        return self.config.lora is not None


def load_policy(config: ModelConfig, seed: int, *, keep_adapters: bool = False) -> Policy:
    """Load model and tokenizer, and add fresh LoRA adapters if asked for.

    The same ``config`` and ``seed`` give bit-identical weights on every device: adapters are initialised on the CPU
    from their own stream, and the global generators are left as they were. B starts at zero: the adapted model equals
    the loaded one.

    A folder of LoRA adapters is merged into its base (in float32) first. The result, not the base, is what "initial
    weights" then means. With ``keep_adapters`` the adapters stay beside their base instead, as they were in training,
    and the policy's ``config`` says so: for evaluation, where merging would round what was learned to bf16.

    Raises:
        ModelError: nothing to load there, not a causal language model, no chat template, missing weights, unknown LoRA
            targets, no such device.
    """
    from selfdistill.rollouts.chat import ChatFormat

    device = resolve_device(config.device)
    source = resolve_source(config.path)
    tokenizer = _load_tokenizer(source, config)
    if keep_adapters and config.lora is None and _is_adapter_folder(Path(source)):
        return _load_adapted(Path(source), config, tokenizer, device)
    model = _load_model(source, config)
    chat = ChatFormat(tokenizer, _generation_eos(model))
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    adapted = model if config.lora is None else _add_adapters(model, config.lora, seed, config.gradient_checkpointing)
    adapted.to(device)  # type: ignore[arg-type]  # transformers' decorated signature
    adapted.eval()
    return Policy(adapted, tokenizer, chat, config, device)


def save_pretrained(policy: Policy, folder: Path, card: str, state: Mapping[str, torch.Tensor] | None = None) -> None:
    """Write the model as transformers (all weights) or PEFT (adapters) expects it, the tokenizer and a model card.

    Complete or absent: a process that is killed meanwhile leaves no half-written folder. ``card`` becomes README.md.
    ``state`` holds the weights if the model's own do not stand whole on this process.

    Raises:
        ModelError: the folder cannot be written.
    """
    # For adapters: the default looks up the base model's vocabulary on the hub.
    extra: dict[str, Any] = {"save_embedding_layers": False} if policy.has_adapters else {}
    if state is not None:
        extra["state_dict"] = dict(state)
    try:
        with _no_progress_bars(), complete_folder(folder) as partial:
            policy.model.save_pretrained(str(partial), **extra)
            policy.tokenizer.save_pretrained(str(partial))
            (partial / "README.md").write_text(card, encoding="utf-8")
    except OSError as error:
        raise ModelError(f"the model could not be saved to {folder}: {error}; free space or choose another") from error


def resolve_device(name: str) -> torch.device:
    """Return the device that ``auto``, ``cpu`` or ``cuda`` stands for here.

    Raises:
        ModelError: CUDA is asked for and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ModelError("model.device: 'cuda' is asked for and there is no CUDA device here; use auto or cpu")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def resolve_source(path: str) -> str:
    """Return the local folder or the hub id that ``model.path`` stands for.

    Raises:
        ModelError: a folder that does not exist, or a name that can be neither a folder nor a hub id.
    """
    if path == "embedded":
        from selfdistill.models.embedded import embedded_path

        return str(embedded_path())
    if path == "smollm2":
        from selfdistill.models.smollm2 import prepare_smollm2

        return str(prepare_smollm2())
    folder = Path(path).expanduser()
    if folder.is_dir():
        if not any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
            raise ModelError(f"model.path: {path!r} holds no config.json; give the folder that save_pretrained wrote")
        return str(folder)
    if folder.exists():
        raise ModelError(f"model.path: {path!r} is a file; give the folder that it is in")
    if path.startswith(("/", "./", "../", "~")) or path.endswith("/") or path.count("/") > 1 or "\\" in path:
        raise ModelError(f"model.path: there is no folder {path!r}; check the path, or give a hub id (owner/name)")
    if "/" not in path and nearest(path, ("embedded", "smollm2")).startswith(" (did"):
        raise ModelError(f"model.path: there is no model {path!r}{nearest(path, ('embedded', 'smollm2'))}")
    return path


def _load_model(source: str, config: ModelConfig) -> PreTrainedModel:
    """Return the causal language model at ``source`` on the CPU, adapters merged."""
    folder = Path(source)
    if _is_adapter_folder(folder):
        return _load_merged(folder, config)
    from transformers import AutoConfig, AutoModelForCausalLM

    loader: Any = AutoModelForCausalLM
    where = {"revision": config.revision or "main", "trust_remote_code": config.trust_remote_code}
    with _loading_errors(source, config), _no_progress_bars():
        architecture = AutoConfig.from_pretrained(source, **where)
        _require_causal_lm(architecture, config)
        model, report = loader.from_pretrained(
            source,
            config=architecture,
            dtype=getattr(torch, config.dtype),
            attn_implementation=config.attention,
            output_loading_info=True,
            **where,
        )
    # transformers would go on with random weights in their place.
    if report["missing_keys"]:
        lacking = sorted(report["missing_keys"])
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        raise ModelError(f"model.path: {config.path!r} has no weights for {lacking[0]}{more}; save or copy it again")
    loaded: PreTrainedModel = model
    return loaded


def _is_adapter_folder(folder: Path) -> bool:
    return (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file()


def _adapter_config(folder: Path, config: ModelConfig) -> Any:
    """Return PEFT's configuration of the adapters in ``folder``, which names their base."""
    from peft import PeftConfig

    with _loading_errors(str(folder), config):
        adapters = PeftConfig.from_pretrained(str(folder))
    if not adapters.base_model_name_or_path:
        raise ModelError(f"model.path: {folder}/adapter_config.json names no base model; add base_model_name_or_path")
    return adapters


def _load_adapted(
    folder: Path, config: ModelConfig, tokenizer: PreTrainedTokenizerBase, device: torch.device
) -> Policy:
    """Return the adapters in ``folder`` beside their base, which has ``config``'s dtype; they stay float32."""
    from peft import PeftModel

    from selfdistill.rollouts.chat import ChatFormat

    known = _adapter_config(folder, config)
    targets = known.target_modules
    targets = (targets,) if isinstance(targets, str) else tuple(sorted(targets))
    lora = LoraConfig(r=known.r, alpha=known.lora_alpha, targets=targets)
    config = config.model_copy(update={"path": known.base_model_name_or_path, "lora": lora})
    model = _load_model(resolve_source(config.path), config)
    chat = ChatFormat(tokenizer, _generation_eos(model))
    with _loading_errors(str(folder), config):
        adapted: Any = PeftModel.from_pretrained(model, str(folder), autocast_adapter_dtype=True)
    return Policy(adapted.to(device).eval(), tokenizer, chat, config, device)


def _load_merged(folder: Path, config: ModelConfig) -> PreTrainedModel:
    """Return the base of the adapters in ``folder`` with them merged into it, summed in float32."""
    from peft import PeftModel

    base = _adapter_config(folder, config).base_model_name_or_path
    model = _load_model(resolve_source(base), config.model_copy(update={"dtype": "float32", "path": base}))
    with _loading_errors(str(folder), config):
        adapted: Any = PeftModel.from_pretrained(model, str(folder))
        merged = adapted.merge_and_unload()
    result: PreTrainedModel = merged.to(getattr(torch, config.dtype)).requires_grad_(True)
    result.config._name_or_path = result.name_or_path = str(folder)
    return result


def _load_tokenizer(source: str, config: ModelConfig) -> PreTrainedTokenizerBase:
    """Return the tokenizer at ``source``."""
    from transformers import AutoTokenizer

    with _loading_errors(source, config):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            source, revision=config.revision or "main", trust_remote_code=config.trust_remote_code
        )
    return tokenizer


def _require_causal_lm(architecture: Any, config: ModelConfig) -> None:
    """Refuse encoders, sequence-to-sequence models and other heads before any weight is read."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if config.trust_remote_code and "AutoModelForCausalLM" in (getattr(architecture, "auto_map", None) or {}):
        return
    valid: set[str] = set()
    for names in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
        valid.update((names,) if isinstance(names, str) else names)
    declared = architecture.architectures or ()
    known = architecture.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if not known or (declared and not valid.intersection(declared)):
        what = ", ".join(declared) or architecture.model_type
        raise ModelError(
            f"model.path: {config.path!r} is not a causal language model but {what}; choose one that generates text"
        )


def _add_adapters(model: PreTrainedModel, lora: LoraConfig, seed: int, checkpointing: bool) -> PeftModel:
    """Return the model with fresh, trainable float32 adapters, everything else frozen.

    Why float32 beside bf16 weights: at learning rates like 5e-6 an update is below one ulp of a bf16 parameter, and
    would be lost.
    """
    import peft

    _require_targets(model, lora)
    if checkpointing:
        # With a frozen embedding no input of a checkpointed block would ask for a gradient.
        model.enable_input_require_grads()
    adapters = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.r,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # peft only ever divides it
        lora_dropout=lora.dropout,
        target_modules=list(lora.targets),
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive(seed, "lora"))
        adapted: Any = peft.get_peft_model(model, adapters, autocast_adapter_dtype=True)
    wrapped: PeftModel = adapted
    return wrapped


def _require_targets(model: PreTrainedModel, lora: LoraConfig) -> None:
    """Refuse LoRA targets that the model does not have (peft accepts them as long as one matches)."""
    head = model.get_output_embeddings()
    linear = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    }
    for target in lora.targets:
        if target not in linear:
            hint = nearest(target, linear)
            raise ModelError(f"model.lora.targets: the model has no linear layer {target!r} to adapt{hint}")


def _generation_eos(model: PreTrainedModel) -> tuple[int, ...]:
    """Return every end-of-sequence id of the generation config (an int, a list or nothing)."""
    eos: Any = getattr(model.generation_config, "eos_token_id", None)
    if eos is None:
        return ()
    return (eos,) if isinstance(eos, int) else tuple(eos)


@contextlib.contextmanager
def _loading_errors(source: str, config: ModelConfig) -> Iterator[None]:
    """Turn what transformers, the hub client and safetensors raise into one sentence with a remedy."""
    from safetensors import SafetensorError

    local = Path(source).is_dir()
    try:
        yield
    except ImportError as error:
        raise ModelError(f"model.path: {config.path!r} needs a package that is missing: {_line(error)}") from error
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        if "trust_remote_code" in str(error):
            remedy = "read its Python files, then set model.trust_remote_code=true, or choose another model"
            raise ModelError(f"model.path: {config.path!r} brings its own code, which is not run; {remedy}") from error
        if local:
            raise ModelError(
                f"model.path: the model in {source!r} cannot be loaded ({_line(error)}); save or copy it again"
            ) from error
        raise ModelError(
            f"model.path: {config.path!r} is no folder here and could not be read from the hub ({_line(error)}); "
            "check the name and the network, or give a local folder, or use embedded"
        ) from error


def _line(error: BaseException) -> str:
    """Return the first line of an error's text, shortened."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    return text if len(text) <= 200 else f"{text[:197]}..."


@contextlib.contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Keep transformers' bars (one per loaded file) out of logs and out of our own display."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
