"""Checks of a Fisher that comes from elsewhere or goes there: is it the checkpoint's own, whole and possible?"""

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from stages.running.errors import InputError

if TYPE_CHECKING:  # they import torch, which a misspelt name need not wait for
    from stages.storage.checkpoint import Checkpoint
    from stages.storage.statistic_files import StatisticFiles


def verified_fisher(name: str, checkpoint: Path, fisher: Path) -> tuple["Checkpoint", "StatisticFiles"]:
    """A checkpoint and its Fisher, after the checks of a merge and a look at every entry.

    Raises:
        InputError: the Fisher is of another checkpoint; a tensor is missing, too many, of another shape, or has an
            entry that is negative or not finite; or the card says other norms, means or zeros than the tensors have.
    """
    from stages.merging.ingredients import Ingredients
    from stages.merging.methods.fisher.options import Fisher
    from stages.merging.methods.fisher.rule import fisher_norm

    ingredients = Ingredients({name: checkpoint}, Fisher(), {name: fisher})
    found = ingredients.statistics["diagonal"][name]
    parameters = {tensor for tensor, spec in ingredients.target.tensors.specs.items() if spec.is_floating}
    known = {found.tensors.stored_name(tensor) for tensor in found.tensors.specs.keys() & parameters}
    if unknown := sorted(found.tensors.stored.keys() - known):
        raise InputError(f"{found.tensors.file}: tensor {unknown[0]} is of no parameter; estimate this Fisher again")
    fisher_norm(replace(found, card={}), list(found.tensors.specs))  # with no norms in its card it reads every entry
    ingredients.verify()
    _check_summaries(found)
    return ingredients.target, found


def _check_summaries(fisher: "StatisticFiles") -> None:
    """Compare what the card says of each tensor, which merges and reports believe, with the tensor."""
    from stages.storage.statistics import SUMMARY_TOLERANCE, summary

    if "tensors" not in fisher.card:
        return
    stated = fisher.card["tensors"]
    names = {fisher.tensors.stored_name(name): name for name in fisher.tensors.specs}
    if not isinstance(stated, dict) or stated.keys() != names.keys():
        raise InputError(f"{fisher.card_file}: tensors: are not those of {fisher.tensors.file}; estimate it again")
    for stored, name in names.items():
        for key, value in summary(fisher.tensors.read(name)).items():
            says = stated[stored].get(key) if isinstance(stated[stored], dict) else None
            if not isinstance(says, int | float) or not math.isclose(says, value, rel_tol=SUMMARY_TOLERANCE):
                raise InputError(
                    f"{fisher.card_file}: tensors.{stored}.{key} is {says!r}, but the tensor's is {value:.6g}; the "
                    "card is not of these tensors: fetch both again, or estimate this Fisher again"
                )
