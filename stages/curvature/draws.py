"""Random numbers that belong to examples, not to batches: the same in whatever batch, process or order they come."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


class Draws:
    """The random numbers of one draw for a batch whose examples are numbered `first`, `first + 1`, …

    Each example has its own counter-based stream (Philox, keyed on the seed and the example's number). Positions come
    first to last, so padding behind them changes nothing either; of padding before them, `starting_at` knows.

    Args:
        seed: of the whole estimation.
        first: number of the batch's first example among all examples.
        draw: number of the draw, where several are averaged.
    """

    def __init__(self, seed: int, first: int, draw: int = 0) -> None:
        self._seed, self._first, self._draw = seed, first, draw
        self._starts: list[int] = []

    def starting_at(self, starts: Sequence[int]) -> "Draws":
        """These draws, [B, T, …], with those of example b's first position at its position `starts[b]`."""
        moved = Draws(self._seed, self._first, self._draw)
        moved._starts = list(starts)
        return moved

    def signs(self, shape: Sequence[int]) -> Tensor:
        """Independent ±1, [B, …] in int8."""
        values = int(np.prod(shape[1:], dtype=np.int64))
        bits = [
            np.unpackbits(np.frombuffer(stream.bytes(-(-values // 8)), dtype=np.uint8), count=values)
            for stream in self._streams(shape[0])
        ]
        return self._placed(torch.from_numpy(np.stack(bits).astype(np.int8)).mul_(2).sub_(1).reshape(tuple(shape)))

    def uniform(self, shape: Sequence[int]) -> Tensor:
        """Uniform in [0, 1), [B, …] in float64."""
        return self._placed(torch.from_numpy(np.stack([s.random(shape[1:]) for s in self._streams(shape[0])])))

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Standard normal, [B, …] in float64."""
        return self._placed(torch.from_numpy(np.stack([s.standard_normal(shape[1:]) for s in self._streams(shape[0])])))

    def _placed(self, values: Tensor) -> Tensor:
        for b, start in enumerate(self._starts):
            if start:  # what is drawn for positions behind the last goes to the padding, and is not looked at
                values[b] = values[b].roll(start, 0)
        return values

    def _streams(self, examples: int) -> list[np.random.Generator]:
        return [
            np.random.Generator(np.random.Philox(key=[self._seed, self._first + b], counter=[0, 0, 0, self._draw]))
            for b in range(examples)
        ]
