"""Running sums over examples, from which every statistic is a mean."""

from collections.abc import Collection, KeysView, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from stages.curvature.accumulators import Accumulator, Side


@dataclass(frozen=True)
class WeightSums:
    """What one accumulator has added up.

    Attributes:
        accumulator: which.
        totals: name of a Linear's weight → its sums, as `Accumulator.zeros` has made them.
    """

    accumulator: Accumulator
    totals: dict[str, dict[str, Tensor]]


@dataclass
class Sums:
    """What has been added up so far.

    Attributes:
        diagonal: parameter name → Σ over examples of its squared gradients, float32 of its shape; empty if not wanted.
        factors: what is wanted of Linear weights.
        examples: their number.
    """

    diagonal: dict[str, Tensor]
    factors: list[WeightSums]
    examples: int = 0

    def weights(self, side: Side) -> KeysView[str]:
        """The weights of which inputs, or gradients, are added up."""
        found = [group.totals for group in self.factors if group.accumulator.adds == side]
        return dict.fromkeys(name for totals in found for name in totals).keys()

    def add(self, side: Side, name: str, rows: Tensor) -> None:
        """Add rows to all sums of the weight `name` that are of this side; see `Accumulator.add`."""
        for group in self.factors:
            if group.accumulator.adds == side and name in group.totals:
                group.accumulator.add(group.totals[name], rows)

    def tensors(self) -> dict[str, Tensor]:
        """All sums under one name each; the same storage."""
        found = {f"diagonal/{name}": tensor for name, tensor in self.diagonal.items()}
        for group in self.factors:
            for name, totals in group.totals.items():
                found |= {f"factors/{group.accumulator.name}/{key}/{name}": total for key, total in totals.items()}
        return found

    def restore(self, tensors: Mapping[str, Tensor], examples: int) -> None:
        """Set every sum to what `tensors()` held when `examples` had been added."""
        for name, tensor in self.tensors().items():
            tensor.copy_(tensors[name])
        self.examples = examples

    def drop_factors(self, names: Collection[str]) -> None:
        """Leave these weights out of all `factors`."""
        for group in self.factors:
            for name in group.totals.keys() & names:
                del group.totals[name]

    def results(self) -> dict[str, dict[str, Tensor]]:
        """Name of an accumulator → weight → its result, of the weights of which all accumulators have one."""
        found = {
            group.accumulator.name: {
                name: group.accumulator.result(totals, self.examples) for name, totals in group.totals.items()
            }
            for group in self.factors
        }
        lacking = {name for results in found.values() for name, result in results.items() if result is None}
        return {
            accumulator: {
                name: result for name, result in results.items() if result is not None and name not in lacking
            }
            for accumulator, results in found.items()
        }

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
