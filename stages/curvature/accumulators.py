"""How statistics of Linear weights are added up: from the inputs of a Linear, or from the gradients at its outputs."""

from collections.abc import Mapping
from typing import Literal, Protocol

import torch
from torch import Tensor

Side = Literal["inputs", "gradients"]


class Accumulator(Protocol):
    """What is added up for every Linear weight, a call of the Linear or a backward pass at a time.

    Its sums must be sums over examples: what several processes have added, each for its own examples, is added too.

    Attributes:
        name: what its sums are called. Two accumulators of one name are one, and have one set of sums.
        adds: `inputs` of the Linear, which come with the forward pass, or `gradients` of the log-likelihood at its
            outputs, of each backward pass.
    """

    @property
    def name(self) -> str: ...

    @property
    def adds(self) -> Side: ...

    def zeros(self, inputs: int, outputs: int, like: Tensor) -> dict[str, Tensor]:
        """The sums of a weight, by names of their own, before there are any examples.

        Args:
            inputs: how many values a position of the Linear's input has.
            outputs: and of its output.
            like: the weight, on whose device the sums are to be.
        """
        ...

    def add(self, sums: Mapping[str, Tensor], rows: Tensor) -> None:
        """Add to the sums, in place.

        Args:
            sums: of one weight, as `zeros` has made them.
            rows: float32, of a batch's examples; the input's positions that are no padding [positions, inputs], or the
                gradients at all positions [positions, outputs].
        """
        ...

    def result(self, sums: Mapping[str, Tensor], examples: int) -> Tensor | None:
        """The statistic, in the memory of the sums if it likes; None if nothing has been added that it could be of.

        A weight of which one accumulator has found nothing is left out of the others' results too.

        Args:
            sums: of one weight.
            examples: their number, in all batches.
        """
        ...


class InputProducts:
    """K-FAC's A [inputs, inputs]: the mean of x xᵀ over all positions."""

    name = "inputs"
    adds: Side = "inputs"

    def zeros(self, inputs: int, outputs: int, like: Tensor) -> dict[str, Tensor]:
        """Σ x xᵀ, and the number of the x."""
        return {
            "total": like.new_zeros(inputs, inputs, dtype=torch.float32),
            "positions": like.new_zeros((), dtype=torch.int64),
        }

    def add(self, sums: Mapping[str, Tensor], rows: Tensor) -> None:
        """Add the x."""
        sums["total"].addmm_(rows.t(), rows)
        sums["positions"].add_(len(rows))

    def result(self, sums: Mapping[str, Tensor], examples: int) -> Tensor | None:
        """A; None of a Linear that no example went through."""
        return sums["total"].div_(sums["positions"]) if sums["positions"] else None


class GradientProducts:
    """K-FAC's G [outputs, outputs]: the mean over examples of Σ_t E[g_t g_tᵀ], g_t the gradient at position t."""

    name = "outputs"
    adds: Side = "gradients"

    def zeros(self, inputs: int, outputs: int, like: Tensor) -> dict[str, Tensor]:
        """Σ g gᵀ."""
        return {"total": like.new_zeros(outputs, outputs, dtype=torch.float32)}

    def add(self, sums: Mapping[str, Tensor], rows: Tensor) -> None:
        """Add the g."""
        sums["total"].addmm_(rows.t(), rows)

    def result(self, sums: Mapping[str, Tensor], examples: int) -> Tensor:
        """G."""
        return sums["total"].div_(examples)


# What the statistics of Linear weights that have a name here are made of.
ACCUMULATORS: Mapping[str, tuple[Accumulator, ...]] = {
    "kfac": (InputProducts(), GradientProducts()),
    "gram": (InputProducts(),),
}
