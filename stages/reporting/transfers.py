"""Merges of a target with one donor each: what the target's task gains by it, as a grid of targets × donors."""

from collections.abc import Sequence
from dataclasses import dataclass

from stages.reporting.blocks import Figure
from stages.reporting.figures import gain_picture
from stages.reporting.sweeps import own_task
from stages.results.scores import Result

FEWEST = 2  # donors, or targets, that are a grid


@dataclass(frozen=True)
class Transfer:
    """One cell: a merge of two models that keeps the target's head, beside the target alone.

    Attributes:
        method: of the merge; or of what is compared with it.
        target, donor: models.
        accuracy: on the target's task.
        gain: of that accuracy over the target's own.
    """

    method: str
    target: str
    donor: str
    accuracy: float
    gain: float


def find_transfers(results: Sequence[Result]) -> list[Transfer]:
    """The transfers among the results: merges with `heads: target`, and models fine-tuned from the donor itself.

    A model counts as the latter if its base is a donor in some merge whose target was fine-tuned for the same task.
    """
    models = {result.name: result for result in results if result.role == "model"}
    found = []
    pairs: dict[tuple[str, str], str] = {}  # task and donor → target
    for result in results:
        target = str(result.origin.get("target"))
        donors = [name for name in result.origin.get("models", {}) if name != target]
        task = own_task(target, results)
        if result.origin.get("heads") != "target" or len(donors) != 1 or task is None:
            continue
        pairs[task, donors[0]] = target
        alone = models[target].metrics[task]["accuracy"]
        accuracy = result.metrics[task]["accuracy"]
        found.append(Transfer(str(result.origin["method"]), target, donors[0], accuracy, accuracy - alone))
    for model in models.values():
        for (task, donor), target in pairs.items():
            if model.origin.get("base") == donor and own_task(model.name, results) == task and model.name != target:
                alone, accuracy = models[target].metrics[task]["accuracy"], model.metrics[task]["accuracy"]
                found.append(Transfer("fine-tuned after the donor", target, donor, accuracy, accuracy - alone))
    return found


def transfer_figures(results: Sequence[Result]) -> list[Figure]:
    """A heat map per method, if there are enough targets or donors."""
    transfers = find_transfers(results)
    targets = list(dict.fromkeys(transfer.target for transfer in transfers))
    donors = list(dict.fromkeys(transfer.donor for transfer in transfers))
    if max(len(targets), len(donors)) < FEWEST:
        return []
    most = max(abs(transfer.gain) for transfer in transfers)
    methods = list(dict.fromkeys(transfer.method for transfer in transfers))
    return [
        Figure(
            "transfers",
            [
                gain_picture(
                    [
                        {"target": t.target, "donor": t.donor, "gain": t.gain, "accuracy": t.accuracy}
                        for t in transfers
                        if t.method == method
                    ],
                    targets,
                    donors,
                    most,
                    method,
                )
                for method in methods
            ],
            "What a donor (column) gives a target (row): the accuracy on the target’s test split, in per cent, and in "
            "brackets its difference from the target alone, in percentage points. Green is better, orange is worse.",
        )
    ]
