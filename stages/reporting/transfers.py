"""Merges of a target with one donor each: what the target's task gains by it, as a grid of targets × donors."""

from collections.abc import Sequence
from dataclasses import dataclass

from stages.reporting.blocks import Figure
from stages.reporting.figures import gain_picture
from stages.reporting.metric_words import slug, transfer_caption
from stages.reporting.sweeps import own_task
from stages.results.scores import Result, tasks_by_metric
from stages.tasks.metrics import Metric

FEWEST = 2  # donors, or targets, that are a grid


@dataclass(frozen=True)
class Transfer:
    """One cell: a merge of two models that keeps the target's head, beside the target alone.

    Attributes:
        method: of the merge; or of what is compared with it.
        target, donor: models.
        metric: the primary one of the target's task.
        score: on the target's task.
        difference: of that score from the target's own.
    """

    method: str
    target: str
    donor: str
    metric: Metric
    score: float
    difference: float


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
        found.append(_transfer(str(result.origin["method"]), models[target], donors[0], result, task))
    for model in models.values():
        for (task, donor), target in pairs.items():
            if model.origin.get("base") == donor and own_task(model.name, results) == task and model.name != target:
                found.append(_transfer("fine-tuned after the donor", models[target], donor, model, task))
    return found


def _transfer(method: str, target: Result, donor: str, result: Result, task: str) -> Transfer:
    score = result.score(task)
    return Transfer(method, target.name, donor, result.metric(task), score, score - target.score(task))


def transfer_figures(results: Sequence[Result]) -> list[Figure]:
    """A heat map per method for each metric, if there are enough targets or donors."""
    transfers = find_transfers(results)
    found: list[Figure] = []
    for metric in tasks_by_metric(results):
        of_it = [transfer for transfer in transfers if transfer.metric is metric]
        targets = list(dict.fromkeys(transfer.target for transfer in of_it))
        donors = list(dict.fromkeys(transfer.donor for transfer in of_it))
        if max(len(targets), len(donors)) >= FEWEST:
            name = f"transfers-{slug(metric)}" if found else "transfers"
            found.append(_figure(name, metric, of_it, targets, donors))
    return found


def _figure(
    name: str, metric: Metric, transfers: Sequence[Transfer], targets: Sequence[str], donors: Sequence[str]
) -> Figure:
    most = max(abs(transfer.difference) for transfer in transfers)
    methods = list(dict.fromkeys(transfer.method for transfer in transfers))
    pictures = [
        gain_picture(
            metric,
            [
                {"target": t.target, "donor": t.donor, "difference": t.difference, "score": t.score}
                for t in transfers
                if t.method == method
            ],
            targets,
            donors,
            most,
            method,
        )
        for method in methods
    ]
    return Figure(name, pictures, transfer_caption(metric))
