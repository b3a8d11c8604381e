"""``state.json``: everything in a checkpoint but its tensors, and the sizes and digests of the tensors' files."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from selfdistill import __version__
from selfdistill.checkpoints.state import TrainState
from selfdistill.validation import PART

STATE = "state.json"
FORMAT = "selfdistill checkpoint 2"
"""1 was a single file, state.pt."""
BLOCK = 1 << 20

Count = Annotated[int, Field(ge=0)]


@dataclass(frozen=True, config=PART)
class FileFacts:
    """What a file must be for a checkpoint to be whole."""

    bytes: Count
    blake2b: str


@dataclass(frozen=True, kw_only=True, config=PART)
class Manifest:
    """The content of ``state.json``."""

    step: Count
    bad_steps: Count
    skipped_updates: Count
    rollout_tokens: Count
    run_ids: dict[str, str]
    world_size: Annotated[int, Field(ge=1)]
    """Processes that wrote it."""
    versions: dict[str, str]
    files: dict[str, FileFacts]
    prior_tokens: Count
    pass_rates: dict[str, float]
    successes: list[tuple[str, str]]


_ADAPTER = TypeAdapter(Manifest)


def new_digest() -> Any:
    """Return the digest of nothing yet: blake2b, 32 bytes."""
    return hashlib.blake2b(digest_size=32)


def versions() -> dict[str, str]:
    """Return what a checkpoint notes about the programs that wrote it."""
    return {"selfdistill": __version__, "torch": torch.__version__}


def manifest_of(state: TrainState, world_size: int) -> Manifest:
    """Return what ``state`` is apart from its tensors. Later changes to ``state`` do not show in it."""
    return Manifest(
        step=state.step,
        bad_steps=state.bad_steps,
        skipped_updates=state.skipped_updates,
        rollout_tokens=state.rollout_tokens,
        run_ids=dict(state.run_ids),
        world_size=world_size,
        versions=versions(),
        files={},
        prior_tokens=state.prior_tokens,
        pass_rates=dict(state.pass_rates),
        successes=state.successes.state_dict(),
    )


def put_back(manifest: Manifest, state: TrainState) -> None:
    """Put everything but the tensors into ``state``."""
    state.step, state.bad_steps = manifest.step, manifest.bad_steps
    state.skipped_updates, state.rollout_tokens = manifest.skipped_updates, manifest.rollout_tokens
    state.run_ids, state.pass_rates = dict(manifest.run_ids), dict(manifest.pass_rates)
    state.prior_tokens = manifest.prior_tokens
    state.successes.load_state_dict(manifest.successes)


def encode(manifest: Manifest) -> bytes:
    """Return the bytes of ``state.json``, which end with a digest of the rest."""
    content = {"format": FORMAT, **asdict(manifest)}
    content["blake2b"] = _digest_of(content)
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode("utf-8", errors="surrogatepass")


def read_manifest(folder: Path) -> Manifest:
    """Return what ``folder/state.json`` says.

    Raises:
        OSError: there is none.
        ValueError: it is not what :func:`encode` returns.
    """
    text = (folder / STATE).read_bytes()
    try:
        content: Any = json.loads(text.decode("utf-8", errors="surrogatepass"))
    except ValueError:
        raise ValueError(f"its {STATE} is no JSON") from None
    if not isinstance(content, dict) or not str(content.get("format")).startswith("selfdistill checkpoint"):
        raise ValueError(f"its {STATE} is of another program")
    if content["format"] != FORMAT:
        raise ValueError(f"its format is {content['format']!r}, and this version reads {FORMAT!r}; use the newer one")
    if content.pop("blake2b", None) != _digest_of(content):
        raise ValueError(f"its {STATE} is damaged: the content is not what was written")
    del content["format"]
    try:
        return _ADAPTER.validate_python(content)
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise ValueError(f"its {STATE} is not as this version writes it, see {where!r}") from None


def check_sizes(folder: Path, manifest: Manifest) -> None:
    """Compare what can be known without reading.

    Raises:
        ValueError: a file is missing or was cut short.
    """
    for name, facts in manifest.files.items():
        try:
            size = (folder / name).stat().st_size
        except FileNotFoundError:
            raise ValueError(f"its {name} is missing") from None
        if size != facts.bytes:
            raise ValueError(f"its {name} has {size:,} bytes instead of {facts.bytes:,}")


def check_digests(folder: Path, manifest: Manifest, part: int = 0, parts: int = 1) -> None:
    """Read every ``parts``-th file, from the ``part``-th on.

    Raises:
        OSError: one cannot be read.
        ValueError: one is not what was written.
    """
    for name in sorted(manifest.files)[part::parts]:
        digest = new_digest()
        with (folder / name).open("rb") as stream:
            while block := stream.read(BLOCK):
                digest.update(block)
        if digest.hexdigest() != manifest.files[name].blake2b:
            raise ValueError(f"its {name} is damaged: the content is not what was written")


def _digest_of(content: dict[str, Any]) -> str:
    digest = new_digest()
    digest.update(json.dumps(content, sort_keys=True).encode())
    return str(digest.hexdigest())
