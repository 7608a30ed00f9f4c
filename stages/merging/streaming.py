"""Tensors of several files, chunk by chunk; and several tensors at a time, on all cores."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor
from xxhash import xxh3_128

from stages.tensors import TensorFiles, tensor_bytes

# A chunk of each of a few models fits into a core's L2 cache; and up to this size torch runs an operation on the thread
# that asks for it, so that threads do not wait for each other.
CHUNK_VALUES = 1 << 15

Source = tuple[TensorFiles, str]  # files, and the name of a tensor in them

ResultT = TypeVar("ResultT")
ItemT = TypeVar("ItemT")


def places(elements: int) -> Iterator[slice]:
    """Slices that cover `elements` values, chunk by chunk; an empty tensor has one, empty."""
    for start in range(0, max(elements, 1), CHUNK_VALUES):
        yield slice(start, min(start + CHUNK_VALUES, elements))


def chunks(sources: Sequence[Source], dtype: torch.dtype) -> Iterator[list[Tensor]]:
    """The sources' tensors, which have one number of values, side by side and chunk by chunk, flat.

    Each chunk is converted to `dtype` in buffers that the next one uses again: they may be overwritten, not kept. A
    tensor that has been read to its end leaves its digest with its files.
    """
    tensors = [files.read(name).reshape(-1) for files, name in sources]
    contents = [tensor_bytes(tensor) for tensor in tensors]
    digests = [xxh3_128() for _ in sources]
    elements = tensors[0].numel()
    buffers = [torch.empty(min(elements, CHUNK_VALUES), dtype=dtype) for _ in sources]
    for place in places(elements):
        for tensor, content, digest, buffer in zip(tensors, contents, digests, buffers, strict=True):
            buffer[: place.stop - place.start].copy_(tensor[place])
            digest.update(content[place.start * tensor.itemsize : place.stop * tensor.itemsize])
        yield [buffer[: place.stop - place.start] for buffer in buffers]
    for (files, name), digest in zip(sources, digests, strict=True):
        files.digests[name] = digest.hexdigest()


def on_all_cores(work: Callable[[ItemT], ResultT], items: Iterable[ItemT]) -> Iterator[ResultT]:
    """The results of `work` on each item, in the items' order; the first item that raises ends it."""
    pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
    try:
        yield from pool.map(work, items)
    finally:
        pool.shutdown(cancel_futures=True)
