"""The store of a training run: tensors in safetensors through torch's distributed checkpoint (DCP).

DCP plans the write and reads any sharding back into any other; its safetensors storage needs no
pickled metadata, unlike its default one. `vl2.checkpoint.commit` makes a folder of files a step.
In a run of many ranks each writes its parts of the tensors; the main one makes the folder, checks
it and commits it. A step reads back into any number of ranks and any layout, or into one process.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor

from vl2.checkpoint.commit import (
    discard_after,
    keep_last,
    lock_root,
    newest_state,
    partial_folder,
    write_step,
)
from vl2.checkpoint.errors import CheckpointError, SaveError
from vl2.checkpoint.manifest import verify, write_file
from vl2.checkpoint.peers import Peers, Single, meet, on_main
from vl2.checkpoint.snapshot import extra_text, flatten, snapshot
from vl2.logs import get_logger

log = get_logger(__name__)

EXTRA = "extra.json"
MAX_FILE_BYTES = 2**28
"""Most bytes in one file, which DCP builds in memory (a single larger tensor gets its own)."""


class CheckpointStore:
    """The steps below one folder, which only this store may write until it is closed.

    With `peers`, all ranks call every method at the same point and with the same arguments, apart
    from the tensors, of which each gives its own and its parts of the distributed ones.

    Args:
        root: created when it is missing; the same for all ranks.
        keep: how many of the newest steps stay.
        max_file_bytes: most bytes of tensors in one file.
        peers: the ranks of the run.

    Raises:
        ValueError: another run uses the folder, or `keep` or `max_file_bytes` is below 1.
    """

    def __init__(
        self,
        root: str | Path,
        keep: int = 3,
        *,
        max_file_bytes: int = MAX_FILE_BYTES,
        peers: Peers | None = None,
    ) -> None:
        if keep < 1:
            raise ValueError(f"keep is {keep}: expected at least 1")
        if max_file_bytes < 1:
            raise ValueError(f"max_file_bytes is {max_file_bytes}: expected at least 1")
        self.root = Path(root)
        self.keep = keep
        self.max_file_bytes = max_file_bytes
        self.peers = peers or Single()
        self._closed = False
        self._lock = on_main(self.peers, lambda: lock_root(self.root))
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._in_flight: Future[None] | None = None

    def save(
        self,
        step: int,
        tensors: Mapping[str, Any],
        extra: Mapping[str, Any],
        *,
        asynchronous: bool = False,
    ) -> None:
        """Write a step and remove the oldest ones beyond `keep`.

        The state is copied before this returns, so training may continue at once. At most one save
        is in flight: a second one waits for it.

        Args:
            step: later than every whole step in the folder.
            tensors: tensors by name, nested at will; names are joined with a dot.
            extra: what JSON can hold exactly: str keys, lists, numbers, strings, booleans, None.
            asynchronous: write in a thread; `wait`, the next `save` or `close` raises its failure.

        Raises:
            ValueError: a value that cannot be saved, or the store is closed.
            CheckpointError: this save or the one in flight failed.
        """
        if self._closed:
            raise ValueError(f"the store of {self.root} is closed: open a new one")
        self.wait()
        text = extra_text(extra)
        alone = self.peers.group is None
        state = {n: snapshot(tensor, alone=alone) for n, tensor in flatten(tensors).items()}
        if asynchronous:
            self._in_flight = self._writer.submit(self._write, step, state, text)
        else:
            self._write(step, state, text)

    def wait(self) -> None:
        """Wait for the save in flight, if there is one.

        Raises:
            CheckpointError: it failed.
        """
        pending, self._in_flight = self._in_flight, None
        if pending is not None:
            pending.result()

    def newest(self) -> Path | None:
        """Folder of the newest whole step; damaged ones are logged and skipped.

        Raises:
            CheckpointError: there are steps, and all are damaged.
        """
        self.wait()
        found = on_main(self.peers, lambda: newest_state(self.root))
        name = self.peers.gather_text(found.name if found else "")[0]
        return self.root / name if name else None

    def load(
        self, folder: Path, tensors: Mapping[str, Any], *, subset: bool = False
    ) -> dict[str, Any]:
        """Fill `tensors` from a step; see `load_step`. The main rank checks it for all."""
        on_main(self.peers, lambda: verify(folder))
        return _fill(folder, tensors, subset=subset)

    def discard_after(self, step: int) -> None:
        """Remove every later step: training goes back to `step` and will save them anew."""
        self.wait()
        on_main(self.peers, lambda: discard_after(self.root, step))

    def close(self) -> None:
        """Finish the save in flight and give the folder free; closing twice is fine.

        Raises:
            CheckpointError: the save in flight failed.
        """
        try:
            self.wait()
        finally:
            self._closed = True
            self._writer.shutdown()
            if self._lock is not None:
                self._lock.close()

    def __enter__(self) -> CheckpointStore:
        """The store itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close; a failed save must not hide the error that ended the block."""
        try:
            self.close()
        except CheckpointError as failure:
            if error is None:
                raise
            log.error("the last save failed as well: %s", failure)

    def _write(self, step: int, state: dict[str, Tensor], extra: str) -> None:
        if not self.peers.is_main:
            self._write_part(step, state)
            return

        def write(folder: Path) -> None:
            meet(self.peers)
            _write_tensors(folder, state, self.max_file_bytes, self.peers)
            write_file(folder / EXTRA, extra.encode())

        try:
            folder = write_step(self.root, step, write)
            log.info("saved step %d, %d tensors, into %s", step, len(state), folder)
            keep_last(self.root, self.keep, valid=folder)
        except ValueError as error:  # the others are at one of their two meetings
            meet(self.peers, error)
            raise
        meet(self.peers)

    def _write_part(self, step: int, state: dict[str, Tensor]) -> None:
        """The other ranks' side of `_write`: their tensors, between two meetings."""
        meet(self.peers)  # the folder is there
        folder = partial_folder(self.root, step)
        with suppress(OSError, CheckpointError):  # of any rank: it is the main one's to say
            _write_tensors(folder, state, self.max_file_bytes, self.peers)
        meet(self.peers)  # the step is committed


def load_step(folder: Path, tensors: Mapping[str, Any], *, subset: bool = False) -> dict[str, Any]:
    """Fill `tensors` in place from a step and return its `extra`; needs no store and no lock.

    Every byte of the step, and every key, shape and dtype, is checked before a tensor is touched.

    Args:
        folder: of the step.
        tensors: as saved, nested at will.
        subset: let the step hold more than is asked for, such as moments.

    Raises:
        CheckpointError: the step is damaged, or has other tensors than the given ones.
    """
    verify(folder)
    return _fill(folder, tensors, subset=subset)


def _fill(folder: Path, tensors: Mapping[str, Any], *, subset: bool) -> dict[str, Any]:
    """`load_step` of a step that was found whole. Ranks read their own parts, each for itself."""
    extra = read_extra(folder)
    targets = flatten(tensors)
    reader = HuggingFaceStorageReader(str(folder))
    _allow_single_process()
    try:
        _check_same(folder, reader.read_metadata().state_dict_metadata, targets, subset)
        with torch.no_grad():
            load(dict(targets), storage_reader=reader, no_dist=True)
    except (CheckpointException, SafetensorError, KeyError, OSError) as error:
        raise CheckpointError(f"{folder} cannot be read: {_cause(error)}") from None
    return extra


def read_extra(folder: Path) -> dict[str, Any]:
    """The `extra` of a step that was found whole, without its tensors.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        extra = json.loads((folder / EXTRA).read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / EXTRA} cannot be read ({error})") from None
    if not isinstance(extra, dict):
        raise CheckpointError(f"{folder / EXTRA} holds {type(extra).__name__}, expected an object")
    return extra


def _write_tensors(
    folder: Path, state: dict[str, Tensor], max_file_bytes: int, peers: Peers
) -> None:
    """Let DCP write the tensors of all ranks. If one of them fails, all of them do.

    Raises:
        OSError: the disk is too full or cannot be written.
        CheckpointError: DCP cannot write one of them.
    """
    writer = HuggingFaceStorageWriter(
        str(folder),
        fqn_to_index_mapping=_files(state, max_file_bytes, peers),
        save_distributed=True,
    )
    alone = peers.group is None
    if alone:
        _allow_single_process()
    try:
        save(dict(state), storage_writer=writer, process_group=peers.group, no_dist=alone)
    except CheckpointException as error:
        cause = _cause(error)
        if isinstance(cause, OSError):
            raise cause from None
        raise SaveError(f"cannot save into {folder}: {cause}") from None


def _files(state: Mapping[str, Tensor], max_file_bytes: int, peers: Peers) -> dict[str, int]:
    """The number of the file that each tensor goes into, among the files of its rank.

    It is the same on all ranks, also where some have tensors that others lack.
    """
    own = {name: _own_bytes(tensor) for name, tensor in state.items()}
    sizes: dict[str, int] = {}
    for text in peers.gather_text(json.dumps(own)):
        for name, size in json.loads(text).items():
            sizes[name] = max(size, sizes.get(name, 0))
    number, filled = 1, 0
    files: dict[str, int] = {}
    for name, size in sizes.items():
        if filled and filled + size > max_file_bytes:
            number, filled = number + 1, 0
        files[name] = number
        filled += size
    return files


def _own_bytes(tensor: Tensor) -> int:
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).nbytes


def _cause(error: BaseException) -> BaseException:
    """The error below DCP, which wraps it together with a traceback."""
    if isinstance(error, CheckpointException) and error.failures:
        return next(iter(error.failures.values()))[0]
    return error


def _allow_single_process() -> None:
    """Silence DCP's warning about `no_dist`; for good, as a thread must not restore filters."""
    warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or")


def _check_same(
    folder: Path, stored: Mapping[str, Any], targets: Mapping[str, Tensor], subset: bool
) -> None:
    """Refuse a step that lacks tensors that are to be filled or, unless `subset`, has others."""
    for name in sorted(targets.keys() - stored.keys()):
        raise CheckpointError(f"{name} is not in {folder}: load into the model that was saved")
    for name in sorted(stored.keys() - targets.keys() if not subset else ()):
        raise CheckpointError(
            f"{folder} holds {name}, which has no place to go: load into the model that was saved"
        )
    for name, target in targets.items():
        shape, dtype = list(stored[name].size), stored[name].properties.dtype
        if shape != list(target.shape) or dtype != target.dtype:
            raise CheckpointError(
                f"{name} is {shape} {dtype} in {folder}, expected {list(target.shape)} "
                f"{target.dtype}: load into the model that was saved"
            )
