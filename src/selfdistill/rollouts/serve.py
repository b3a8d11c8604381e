"""The servers that a recipe wants: for each address the command that starts vLLM so that it can serve the recipe.

In: the recipe's model and rollout settings. Out: one :class:`ServeCommand` per address of ``rollouts.server.urls``.
They are started by :mod:`selfdistill.rollouts.serve_processes`.
"""

from __future__ import annotations

import ipaddress
import os
import shlex
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

from selfdistill.models.loading import ModelConfig, load_policy, resolve_device, resolve_source
from selfdistill.rollouts.config import RolloutsConfig
from selfdistill.rollouts.needs import Needs
from selfdistill.rollouts.vllm_arguments import (
    Transfer,
    as_flags,
    devices_per_engine,
    engine_arguments,
    weight_transfer,
)
from selfdistill.rollouts.vllm_install import VllmInstall

NAME = "policy"
"""What the servers call the base weights."""
ANY_VLLM = ("vllm", "serve")
"""Starts a server where we do not know where vLLM is installed."""


@dataclass(frozen=True, slots=True)
class ServeCommand:
    """How one server is started."""

    url: str
    words: tuple[str, ...]
    environment: Mapping[str, str]
    """What is set for it, besides what the environment holds anyway."""
    secret: str | None
    """Environment variable that holds the server's API key."""
    local: bool
    """Whether the address is one of this machine's."""
    remarks: tuple[str, ...]
    """What the reader has to know."""

    def line(self) -> str:
        """Return the command for a POSIX shell: one line, everything quoted that has to be."""
        settings = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        if self.secret is not None:
            settings.append(f'VLLM_API_KEY="${self.secret}"')
        return " ".join((*settings, shlex.join(self.words)))


def served_model(model: ModelConfig, seed: int, folder: Path) -> str:
    """Return the folder or hub id that a server for this model has to be started from.

    The model's own where that will do (see :func:`~selfdistill.rollouts.sync.export.base_folder`): then no weights are
    loaded. Otherwise they are written to ``folder``.

    Raises:
        ModelError: the model cannot be loaded or written.
    """
    source = resolve_source(model.path)
    if not _is_adapter(Path(source)) and (model.lora is not None or not _says_tied(source, model)):
        return source
    from selfdistill.rollouts.sync.export import base_folder

    policy = load_policy(model.model_copy(update={"device": "cpu"}), seed)
    return str(base_folder(policy, folder))


def serve_commands(
    model: ModelConfig,
    config: RolloutsConfig,
    needs: Needs,
    *,
    source: str,
    seed: int,
    install: VllmInstall | None,
) -> list[ServeCommand]:
    """Return one command per address, in the recipe's order.

    Args:
        model: dtype, adapters, device.
        config: the recipe's ``rollouts`` section.
        needs: what the recipe asks of an engine.
        source: from :func:`served_model`.
        seed: of the run; requests bring seeds of their own.
        install: the vLLM that servers on this machine are started with, if there is one.

    Raises:
        RecipeError: see :func:`~selfdistill.rollouts.vllm_arguments.engine_arguments`.
        ModelError: ``model.device`` is not there.
    """
    cpu = (install is not None and install.cpu) or resolve_device(model.device).type == "cpu"
    transfer = weight_transfer(config, needs, cpu=cpu, in_process=False)
    arguments = engine_arguments(model, config, needs, cpu=cpu, transfer=transfer)
    if model.revision is not None and not Path(source).is_dir():
        arguments["revision"] = model.revision
    common = ["--served-model-name", NAME, "--seed", str(seed), "--enable-scale-out", "--disable-uvicorn-access-log"]
    flags = [*common, *as_flags(arguments)]
    addresses = [urlsplit(url) for url in config.server.urls]
    local = [_on_this_machine(address.hostname or "") for address in addresses]
    devices = _devices(sum(local), devices_per_engine(arguments)) if not cpu and transfer != "ipc" else {}
    commands: list[ServeCommand] = []
    for address, here in zip(addresses, local, strict=True):
        program = install.server_command() if here and install is not None else ANY_VLLM
        environment = _environment(source, cpu=cpu, lora=needs.lora_rank is not None, transfer=transfer)
        if here and (own := devices.get(sum(command.local for command in commands))):
            environment["CUDA_VISIBLE_DEVICES"] = own
        commands.append(
            ServeCommand(
                address.geturl(),
                (*program, source, *_address(address), *flags),
                environment,
                config.server.api_key_variable,
                here,
                tuple(_remarks(address, here)),
            )
        )
    return commands


def as_script(commands: Sequence[ServeCommand], remarks: Sequence[str] = ()) -> str:
    """Return the commands as lines for a shell, with remarks as comments."""
    lines = [f"# {remark}" for remark in remarks]
    for command in commands:
        lines += [f"# {command.url}", *(f"# {remark}" for remark in command.remarks), command.line()]
    return "\n".join(lines)


def _is_adapter(folder: Path) -> bool:
    return (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file()


def _says_tied(source: str, model: ModelConfig) -> bool:
    """Whether a model's configuration ties its head to its embeddings; True where it cannot be read."""
    from transformers import AutoConfig

    try:
        config: Any = AutoConfig.from_pretrained(
            source, revision=model.revision or "main", trust_remote_code=model.trust_remote_code
        )
    except (OSError, ValueError, KeyError, ImportError):
        return True  # loading the model says what is wrong
    return bool(getattr(config.get_text_config(), "tie_word_embeddings", True))


def _environment(source: str, *, cpu: bool, lora: bool, transfer: Transfer | None) -> dict[str, str]:
    """Return what has to be set: the endpoints that take weights are behind switches."""
    environment = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    if lora:
        environment["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"
    if transfer == "ipc":  # handles of GPU memory travel pickled
        environment["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"
    if cpu:  # else one core is kept free for the front end
        environment["VLLM_CPU_NUM_OF_RESERVED_CPU"] = "0"
    if Path(source).is_dir():
        environment["HF_HUB_OFFLINE"] = "1"
    return environment


def _address(address: SplitResult) -> list[str]:
    port = address.port or (443 if address.scheme == "https" else 80)
    return ["--host", address.hostname or "", "--port", str(port)]


def _remarks(address: SplitResult, here: bool) -> list[str]:
    """Say what the reader has to see to."""
    remarks = []
    if not here:
        remarks.append("Not an address of this machine: run it there; the model's folder has to be there too.")
    elif not _is_loopback(address.hostname or ""):
        remarks.append("Reachable from the network: whoever reaches it can replace its weights; trust that network.")
    if address.scheme == "https":
        remarks.append("https: add ssl_certfile and ssl_keyfile (--ssl-certfile ..., --ssl-keyfile ...), or a proxy.")
    return remarks


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _on_this_machine(host: str) -> bool:
    """Whether a server can listen at ``host`` here: only at an address of this machine a socket can be bound."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return False
    for family, kind, protocol, _, address in found:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.bind((address[0], 0))
            return True
        except OSError:
            continue
    return False


def _devices(servers: int, each: int) -> dict[int, str]:
    """Return ``CUDA_VISIBLE_DEVICES`` by server: GPUs of their own, the last ones, because the trainer takes the first.

    Empty where one server has all GPUs that there are, or where there are too few: then the servers share.
    """
    import torch

    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    visible = listed.split(",") if listed else [str(index) for index in range(torch.cuda.device_count())]
    wanted = servers * each
    if not wanted or len(visible) < wanted or (servers == 1 and len(visible) == wanted):
        return {}
    mine = visible[-wanted:]
    return {server: ",".join(mine[server * each : (server + 1) * each]) for server in range(servers)}
