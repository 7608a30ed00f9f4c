"""Tensors of several files, chunk by chunk; and several tensors at a time, on all cores."""

import ctypes
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor
from xxhash import xxh3_128

from stages.running.machine import cores
from stages.storage.tensors import TensorFiles, tensor_bytes

# A compromise: chunks of a few models stay in the caches, and an operation takes long enough that threads seldom wait
# for the interpreter's lock (a quarter of it takes half as long again in all, four times as much twice as long).
CHUNK_VALUES = 1 << 18

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3

Source = tuple[TensorFiles, str]  # files, and the name of a tensor in them

ResultT = TypeVar("ResultT")
ItemT = TypeVar("ItemT")


def places(elements: int) -> Iterator[slice]:
    """Slices that cover `elements` values, chunk by chunk; an empty tensor has one, empty."""
    for start in range(0, max(elements, 1), CHUNK_VALUES):
        yield slice(start, min(start + CHUNK_VALUES, elements))


def chunks(sources: Sequence[Source], dtype: torch.dtype) -> Iterator[list[Tensor]]:
    """The sources' tensors, which have one number of values, in `dtype`, side by side and chunk by chunk, flat.

    Treat them as read-only: what has that type already is the mapped file. A tensor that has been read to its end
    leaves its digest with its files; rows that are a selection of a tensor's leave none, and are copied by the chunk.
    """
    tensors = [
        _Rows(files, name) if name in files.selections else files.read_as(name, dtype).reshape(-1)
        for files, name in sources
    ]
    whole = [(source, tensor) for source, tensor in zip(sources, tensors, strict=True) if isinstance(tensor, Tensor)]
    contents = [tensor_bytes(tensor) for _, tensor in whole]
    digests = [xxh3_128() for _ in whole]
    for place in places(tensors[0].numel()):
        for (_, tensor), content, digest in zip(whole, contents, digests, strict=True):
            digest.update(content[place.start * tensor.itemsize : place.stop * tensor.itemsize])
        yield [tensor[place].to(dtype) for tensor in tensors]
    for ((files, name), _), digest in zip(whole, digests, strict=True):
        files.take_digest(name, digest.hexdigest())


class _Rows:
    """Rows of a tensor, flat, of which only those that are asked for are copied."""

    def __init__(self, files: TensorFiles, name: str) -> None:
        part = files.selections[name]
        tensor = files.read(part.name)
        self._tensor = tensor.reshape(len(tensor), -1)
        self._rows = torch.arange(len(tensor)) if part.rows is None else part.rows

    def numel(self) -> int:
        return len(self._rows) * self._tensor.shape[1]

    def __getitem__(self, place: slice) -> Tensor:
        width = max(self._tensor.shape[1], 1)
        first = place.start // width
        rows = self._tensor[self._rows[first : -(-place.stop // width)]].reshape(-1)
        return rows[place.start - first * width : place.stop - first * width]


def on_all_cores(work: Callable[[ItemT], ResultT], items: Iterable[ItemT]) -> Iterator[ResultT]:
    """The results of `work` on each item, in the items' order; the first item that raises ends it."""
    _keep_freed_memory()
    pool = ThreadPoolExecutor(cores(), initializer=_work_alone)
    try:
        yield from pool.map(work, items)
    finally:
        pool.shutdown(cancel_futures=True)


def _work_alone() -> None:
    """Let torch run this thread's operations on this thread: the other cores have work of their own."""
    torch.get_num_threads()  # sets the thread's number, which would undo what follows if it came later
    threadpool_limits(1, user_api="openmp")  # in OpenMP a thread's own setting; torch's is of the whole process


@cache
def _keep_freed_memory() -> None:
    """Let glibc keep the memory of a chunk for the next, up to some megabytes a thread, not give it back and ask again.

    The page faults of memory asked for anew can take longer than the arithmetic that is done in it.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:  # glibc; 1 is a success
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        mallopt(_M_TRIM_THRESHOLD, 64 << 20)
