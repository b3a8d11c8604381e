"""The tensors' files: torch.distributed.checkpoint's format, written with digests, and read without running any code.

Each process writes one file with its parts; where several hold the same part, one of them writes it. What is read may
be divided otherwise than what was written. Of torch.distributed.checkpoint this uses planners, writer and reader; what
processes tell each other meanwhile goes through :class:`~selfdistill.parallel.World`, so that all of them
learn when one fails.

A tensor is read by ``torch.load(weights_only=True)``. ``.metadata`` is a pickle, which torch would load as it is; here
only the few classes that describe tensors are let through.
"""

from __future__ import annotations

import io
import math
import os
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, ClassVar

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystem, FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    LoadPlanner,
    ReadItem,
    SavePlan,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from selfdistill.checkpoints.manifest import FileFacts, new_digest
from selfdistill.checkpoints.shards import Description, Shard
from selfdistill.parallel import World

METADATA = ".metadata"


def write_shards(folder: Path, shards: Mapping[str, Shard], world: World) -> dict[str, FileFacts]:
    """Write all processes' ``shards`` into ``folder`` and return the facts of every file, on every process.

    Raises:
        OSError: this process cannot write.
        PeerError: another one cannot.
    """
    files = _HashingFiles()
    writer, planner = _Writer(folder, files), _SavePlanner()
    planner.set_up_planner(dict(shards), is_coordinator=world.is_main)
    writer.set_up_storage_writer(world.is_main, rank=world.rank, use_collectives=True)
    proposed = world.gather(writer.prepare_local_plan(planner.create_local_plan()))
    plans, metadata = world.main(lambda: _global_plan(planner, writer, proposed))
    plan = planner.finish_plan(plans[world.rank])
    results = [own for (own,) in world.each(lambda: (writer.write_data(plan, planner).wait(),))]
    world.main(lambda: writer.finish(metadata, results))
    return {name: facts for own in world.gather(files.facts) for name, facts in own.items()}


def describe(folder: Path) -> tuple[Metadata, dict[str, Description]]:
    """Return where the tensors of ``folder`` are, and what they are, without reading them.

    Raises:
        OSError, ValueError, pickle.UnpicklingError: it is not what :func:`write_shards` writes.
    """
    metadata = _Reader(folder).read_metadata()
    described = {}
    for name, one in metadata.state_dict_metadata.items():
        if not isinstance(one, TensorStorageMetadata):
            raise ValueError(f"{METADATA} lists {name!r}, which is no tensor")
        described[name] = Description(tuple(one.size), one.properties.dtype)
    return metadata, described


def read_shards(folder: Path, metadata: Metadata, shards: Mapping[str, Shard]) -> None:
    """Fill ``shards`` with what ``folder`` has of them.

    Raises:
        OSError, RuntimeError, ValueError: a part is missing or cannot be read.
    """
    known = {path.name for path in folder.iterdir()}
    for info in metadata.storage_data.values():
        if info.relative_path not in known:
            raise ValueError(f"{METADATA} refers to {info.relative_path!r}, which is not there")
    reader, planner = _Reader(folder), _LoadPlanner()
    planner.set_up_planner(dict(shards), metadata, is_coordinator=True)
    reader.set_up_storage_reader(metadata, is_coordinator=True)
    reader.read_data(reader.prepare_local_plan(planner.create_local_plan()), planner).wait()


def sync_folder(folder: Path) -> None:
    """Wait until the names in ``folder`` are on disk, as ``fsync`` does for the content of files."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _global_plan(planner: _SavePlanner, writer: _Writer, proposed: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
    plans, metadata = planner.create_global_plan(proposed)
    return writer.prepare_global_plan(plans), metadata


class HashedFile:
    """A new file whose size and digest are known when it is closed, and which is on disk then."""

    def __init__(self, path: Path) -> None:
        self._stream: IO[bytes] = path.open("wb", buffering=1 << 20)
        self._digest = new_digest()
        self._size = 0
        self.error: OSError | None = None
        """What a writer was told, kept because torch turns it into an error of its own."""

    def write(self, data: Any) -> int:
        """Append ``data``."""
        try:
            self._stream.write(data)
        except OSError as error:
            self.error = error
            raise
        self._digest.update(data)
        size = memoryview(data).nbytes
        self._size += size
        return size

    def tell(self) -> int:
        """Return how much was written."""
        return self._size

    def flush(self) -> None:
        """Do nothing: torch flushes after every tensor; what counts is on disk after :meth:`close`."""

    def close(self) -> None:
        """Bring everything to disk."""
        if not self._stream.closed:
            with self._stream:
                self._stream.flush()
                os.fsync(self._stream.fileno())

    def abandon(self) -> None:
        """Let go of the file without minding what becomes of it."""
        try:
            self._stream.close()
        except OSError:
            pass

    @property
    def facts(self) -> FileFacts:
        """Size and digest."""
        return FileFacts(self._size, self._digest.hexdigest())


class _HashingFiles(FileSystem):
    """The files of one process's writer."""

    def __init__(self) -> None:
        super().__init__()
        self.facts: dict[str, FileFacts] = {}
        """By name, of what was written."""

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Iterator[Any]:
        file = HashedFile(Path(path))
        try:
            yield file
            file.close()
        except Exception:
            if file.error is not None:
                raise file.error from None
            raise
        finally:
            file.abandon()
        self.facts[Path(path).name] = file.facts

    def rename(self, path: str | os.PathLike[str], new_path: str | os.PathLike[str]) -> None:
        super().rename(path, new_path)
        self.facts[Path(new_path).name] = self.facts.pop(Path(path).name)


class _Writer(FileSystemWriter):
    """torch's writer, with our files, and without the folder's name, which is going to change, in ``.metadata``."""

    def __init__(self, folder: Path, files: _HashingFiles) -> None:
        # Parts are in CPU memory, or brought there one by one: the overlap that a copy-ahead gives has no use.
        super().__init__(folder, sync_files=False, per_thread_copy_ahead=0)
        self.fs = files

    def storage_meta(self) -> None:
        return None


class _Reader(FileSystemReader):
    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return read_metadata(Path(self.path))


class _SavePlanner(DefaultSavePlanner):
    """Plans for :class:`Shard`."""

    def __init__(self) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)

    def create_local_plan(self) -> SavePlan:
        items = [_write_item(name, shard) for name, shard in self.state_dict.items() if shard.local.numel()]
        self.plan = SavePlan(items)
        return self.plan

    def lookup_object(self, index: MetadataIndex) -> Any:
        return self.state_dict[index.fqn].local


def _write_item(name: str, shard: Shard) -> WriteItem:
    offsets, sizes = torch.Size(shard.offsets), shard.local.shape
    data = TensorWriteData(
        ChunkStorageMetadata(offsets, sizes), TensorProperties(shard.local.dtype), torch.Size(shard.size)
    )
    return WriteItem(MetadataIndex(name, offsets), WriteItemType.SHARD, tensor_data=data)


class _LoadPlanner(LoadPlanner):
    """Plans for :class:`Shard`, which need no word with other processes."""

    def set_up_planner(
        self, state_dict: dict[str, Any], metadata: Metadata | None = None, is_coordinator: bool = False
    ) -> None:
        assert metadata is not None
        self.shards, self.metadata = state_dict, metadata

    def create_local_plan(self) -> LoadPlan:
        items = []
        for name, shard in self.shards.items():
            if not shard.local.numel():
                continue
            own = ChunkStorageMetadata(torch.Size(shard.offsets), shard.local.shape)
            saved = self.metadata.state_dict_metadata[name]
            assert isinstance(saved, TensorStorageMetadata)  # as describe() has found
            found = create_read_items_for_chunk_list(name, saved, [own])
            if sum(math.prod(item.lengths) for item in found) != shard.local.numel():
                raise ValueError(f"{METADATA} knows only a part of {name!r}")
            items += found
        return LoadPlan(items)

    def create_global_plan(self, global_plan: list[LoadPlan]) -> list[LoadPlan]:
        return global_plan

    def finish_plan(self, central_plan: LoadPlan) -> LoadPlan:
        return central_plan

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        raise ValueError(f"{read_item.dest_index.fqn!r} is no tensor")

    def resolve_tensor(self, read_item: ReadItem) -> Tensor:
        part: Tensor = self.shards[read_item.dest_index.fqn].local
        for dimension, (start, length) in enumerate(zip(read_item.dest_offsets, read_item.lengths, strict=True)):
            part = part.narrow(dimension, start, length)
        return part

    def commit_tensor(self, read_item: ReadItem, tensor: Tensor) -> None:
        """Nothing: :meth:`resolve_tensor` returned a view."""


def read_metadata(folder: Path) -> Metadata:
    """Return the content of ``.metadata``.

    Raises:
        pickle.UnpicklingError: there is something else in it than descriptions of tensors.
    """
    with (folder / METADATA).open("rb") as stream:
        metadata = _Unpickler(stream).load()
    if not isinstance(metadata, Metadata) or not isinstance(metadata.storage_data, dict):
        raise pickle.UnpicklingError(f"{METADATA} is of another program")
    return metadata


class _Unpickler(pickle.Unpickler):
    """Lets through what describes tensors, and nothing that could run code."""

    ALLOWED: ClassVar[dict[str, frozenset[str]]] = {
        "torch.distributed.checkpoint.metadata": frozenset(
            (
                "BytesStorageMetadata",
                "ChunkStorageMetadata",
                "Metadata",
                "MetadataIndex",
                "TensorProperties",
                "TensorStorageMetadata",
                "_MEM_FORMAT_ENCODING",
            )
        ),
        "torch.distributed.checkpoint.filesystem": frozenset(("_StorageInfo",)),
        "torch.serialization": frozenset(("_get_layout",)),
        "torch": frozenset(["Size", *(name for name, value in vars(torch).items() if isinstance(value, torch.dtype))]),
    }

    def find_class(self, module: str, name: str) -> Any:
        if name not in self.ALLOWED.get(module, ()):
            raise pickle.UnpicklingError(f"{METADATA} names {module}.{name}, which describes no tensor")
        return super().find_class(module, name)
