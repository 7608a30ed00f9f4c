"""Running sums over examples, from which every statistic is a mean."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Sums:
    """What has been added up so far; a group that is not wanted is empty.

    Attributes:
        diagonal: parameter name → Σ over examples of its squared gradients, float32 of its shape.
        inputs: weight name → Σ over examples and positions of x xᵀ, x the Linear's input [in, in].
        outputs: weight name → Σ over examples and positions of g gᵀ, g the gradient at its output [out, out].
        positions: weight name → number of the x in `inputs` (a scalar tensor, int64).
        examples: their number.
    """

    diagonal: dict[str, Tensor]
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    positions: dict[str, Tensor]
    examples: int = 0

    def tensors(self) -> dict[str, Tensor]:
        """All sums under one name each; the same storage."""
        groups = {
            "diagonal": self.diagonal,
            "inputs": self.inputs,
            "outputs": self.outputs,
            "positions": self.positions,
        }
        return {f"{group}/{name}": tensor for group, members in groups.items() for name, tensor in members.items()}

    def restore(self, tensors: Mapping[str, Tensor], examples: int) -> None:
        """Set every sum to what `tensors()` held when `examples` had been added."""
        for name, tensor in self.tensors().items():
            tensor.copy_(tensors[name])
        self.examples = examples

    def drop_factors(self, names: Collection[str]) -> None:
        """Leave these weights out of `inputs`, `outputs` and `positions`."""
        for group in (self.inputs, self.outputs, self.positions):
            for name in group.keys() & names:
                del group[name]

    def clear(self) -> None:
        """Back to no examples."""
        for tensor in self.tensors().values():
            tensor.zero_()
        self.examples = 0

    def all_reduce(self) -> None:
        """Add up over the processes of `torch.distributed`; every process then has the total."""
        device = next(iter(self.tensors().values())).device
        count = torch.tensor(self.examples, device=device)
        for tensor in [*self.tensors().values(), count]:
            torch.distributed.all_reduce(tensor)
        self.examples = int(count)
