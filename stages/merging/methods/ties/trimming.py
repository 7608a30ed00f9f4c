"""The threshold above which a tensor's largest entries lie, found exactly in two passes over its chunks."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

_HALF_BITS = 16
_HALF_VALUES = 1 << _HALF_BITS


def kth_largest_magnitude(chunks: Callable[[], Iterable[Tensor]], keep: int) -> float:
    """The `keep`-th largest |x|, exactly: the threshold of which |x| ≥ threshold keeps `keep` entries.

    If other entries have the threshold's magnitude, those are kept too: which of them come first is nobody's choice.

    Args:
        chunks: gives the float32 tensors over which to count, of one tensor or of several; called twice. Memory is
            that of a chunk and of 65,536 counts. There may be no NaN.
        keep: how many entries to keep; 0 or less gives infinity, and as many as there are, or more, gives 0.
    """
    upper = MagnitudeCounts()
    for chunk in chunks():
        upper.add(chunk)
    if keep <= 0:
        return math.inf
    if keep >= upper.total:
        return 0.0
    upper_half, keep_of_it = upper.locate(keep)
    lower = MagnitudeCounts(upper_half)
    for chunk in chunks():
        lower.add(chunk)
    lower_half, _ = lower.locate(keep_of_it)
    pattern = torch.tensor(upper_half << _HALF_BITS | lower_half, dtype=torch.int32)
    return pattern.view(torch.float32).item()


class MagnitudeCounts:
    """How often each half of the bit pattern of |x| occurs in float32 tensors.

    Without its sign a float32's bit pattern, read as an integer, has the order of its magnitude, zeros and subnormal
    numbers included. So the upper half of the bits says where the k-th largest magnitude lies, and the lower half of
    those that share its upper half says which it is.
    """

    def __init__(self, upper_half: int | None = None) -> None:
        """Count upper halves; or, given one, the lower halves of the entries that have it."""
        self._upper_half = upper_half
        self._counts = torch.zeros(_HALF_VALUES, dtype=torch.int64)

    @property
    def total(self) -> int:
        """The number of entries counted."""
        return int(self._counts.sum())

    def add(self, chunk: Tensor) -> None:
        """Count the entries of a float32 tensor of any shape."""
        if chunk.dtype != torch.float32:
            raise TypeError(f"magnitudes are counted in float32 tensors, not {chunk.dtype}")
        pattern = chunk.reshape(-1).view(torch.int32) & 0x7FFFFFFF
        if self._upper_half is None:
            halves = pattern >> _HALF_BITS
        else:
            halves = pattern[pattern >> _HALF_BITS == self._upper_half] & (_HALF_VALUES - 1)
        self._counts += torch.bincount(halves, minlength=_HALF_VALUES).to(self._counts.device)

    def locate(self, rank: int) -> tuple[int, int]:
        """The half that the `rank`-th largest entry has, and its rank among the entries with that half; from 1."""
        counted_from_above = self._counts.flip(0).cumsum(0)
        place = int(torch.searchsorted(counted_from_above, rank))
        above = int(counted_from_above[place - 1]) if place else 0
        return _HALF_VALUES - 1 - place, rank - above
