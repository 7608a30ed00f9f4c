"""Checks of a Fisher that comes from elsewhere or goes there: is it the checkpoint's own, whole and possible?"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from stages.errors import InputError

if TYPE_CHECKING:  # they import torch, which a misspelt name need not wait for
    from stages.merging.inputs import Checkpoint, StatisticFiles


def verified_fisher(name: str, checkpoint: Path, fisher: Path) -> tuple["Checkpoint", "StatisticFiles"]:
    """A checkpoint and its Fisher, after the checks of a merge and a look at every entry.

    Raises:
        InputError: the Fisher is of another checkpoint; or a tensor is missing, too many, of another shape, or has an
            entry that is negative or not finite.
    """
    from stages.merging.fisher import fisher_norm
    from stages.merging.ingredients import Ingredients
    from stages.params import Fisher

    ingredients = Ingredients({name: checkpoint}, Fisher(), {name: fisher})
    found = ingredients.statistics["diagonal"][name]
    parameters = {tensor for tensor, spec in ingredients.target.tensors.specs.items() if spec.is_floating}
    if unknown := sorted(found.tensors.specs.keys() - parameters):
        raise InputError(f"{found.tensors.file}: tensor {unknown[0]} is of no parameter; estimate this Fisher again")
    fisher_norm(replace(found, card={}), list(found.tensors.specs))  # with no norms in its card it reads every entry
    ingredients.verify()
    return ingredients.target, found
