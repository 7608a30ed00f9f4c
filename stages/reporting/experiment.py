"""One experiment's part of a report: from its scores to sections."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from stages.reporting.blocks import Block, Section, Text
from stages.reporting.costs import costs_section, results_section
from stages.reporting.figures import (
    accuracy_figure,
    mass_figure,
    search_figure,
    similarity_figure,
    sweep_figure,
    trade_off_figure,
)
from stages.reporting.finding import main_finding, what_was_merged
from stages.reporting.fisher_mass import mass_by_layer
from stages.reporting.significance import RESAMPLES, Group, comparable_groups
from stages.reporting.sweeps import find_sweeps, without_sweeps
from stages.reporting.tables import (
    accuracy_table,
    difference_matrix,
    f1_table,
    merges_table,
    models_table,
    pairs_table,
    similarity_note,
    statistics_table,
)
from stages.reporting.transfers import transfer_figures
from stages.reporting.wording import escaped, listing
from stages.results.costs import Cost, ResultCost
from stages.results.scores import Result, Scores


@dataclass(frozen=True)
class Experiment:
    """What a report says of one run of the pipeline.

    Attributes:
        title: of its part of the page.
        scores: what the `scores` stage has collected.
        introduction: Markdown, before everything else.
        costs: of its stages, if they are known.
        result_costs: of its results, if they are known.
    """

    title: str
    scores: Scores
    introduction: str = ""
    costs: Sequence[Cost] = ()
    result_costs: Sequence[ResultCost] = ()

    @cached_property
    def sections(self) -> Sequence[Section]:
        """What the report says, in the order in which it is read; a section without content is left out."""
        return _sections(self)


def tasks_of(results: Sequence[Result]) -> list[str]:
    """All tasks, in the order in which the results have them."""
    return list(dict.fromkeys(task for result in results for task in result.metrics))


def _sections(experiment: Experiment) -> list[Section]:
    results, tasks = experiment.scores.results, tasks_of(experiment.scores.results)
    sweeps = find_sweeps(results)
    main = without_sweeps(results, sweeps)
    groups = comparable_groups(main)

    overview: list[Block] = [Text(what_was_merged(results, tasks))]
    overview += [Text(finding) for group in _of_other_merges(groups) if (finding := main_finding(group))]
    overview += [
        table
        for table in (merges_table(results), models_table(results), statistics_table(results))
        if table is not None
    ]

    accuracy: list[Block] = [
        Text(
            "Test accuracy in per cent, with 95 % bootstrap intervals over the examples; the mean is over the tasks. "
            "The best of each column is bold. Choices belong to the validation splits; these are only reported."
        ),
        accuracy_table(main, tasks),
    ]
    if len(main) < len(results):
        accuracy += [
            Text(
                "Of merges that differ in λ only, here and in the comparisons stands the one nearest to λ = ½, which "
                "no result has chosen."
            ),
            accuracy_table(results, tasks, summary=f"All {len(results)} results"),
        ]
    accuracy += [accuracy_figure(main, tasks), f1_table(main, tasks)]

    found = [Section("overview", "In short", overview), Section("accuracy", "Accuracy", accuracy)]
    if groups:
        found.append(Section("significance", "Which differences are more than noise", _significance(groups)))
    along: list[Block] = []
    for sweep in sweeps:
        along.append(sweep_figure(sweep, results, tasks))
        trade_off = trade_off_figure(sweep, results, tasks)
        if trade_off is not None:
            along.append(trade_off)
    along += [search_figure(name, points) for name, points in experiment.scores.sweeps.items() if points]
    if along:
        found.append(Section("coefficients", "Along λ", along))
    if transfers := transfer_figures(results):
        found.append(Section("transfers", "What donors give", transfers))
    fishers = experiment.scores.fishers
    if fishers:
        masses = {model: mass_by_layer(tensors) for model, tensors in fishers["tensors"].items()}
        found.append(Section("mass", "Where the Fisher mass lies", [mass_figure(masses)]))
    if fishers and len(fishers["tensors"]) > 1:
        note = similarity_note(fishers)
        alike: list[Block] = [similarity_figure(fishers), *([Text(escaped(note))] if note else [])]
        found.append(Section("similarity", "How alike the Fishers are", alike))
    if experiment.result_costs:
        found.append(results_section(experiment.result_costs))
    if experiment.costs:
        found.append(costs_section(experiment.costs))
    return found


def _of_other_merges(groups: Sequence[Group]) -> list[Group]:
    """The groups whose merges are not all in one before them, on more tasks."""
    kept: list[Group] = []
    seen: set[str] = set()
    for group in groups:
        merges = {result.name for result in group.results if result.role == "merge"}
        if not merges <= seen:
            kept.append(group)
            seen |= merges
    return kept


def _significance(groups: Sequence[Group]) -> list[Block]:
    blocks: list[Block] = [
        Text(
            "Row minus column: the difference in accuracy, in percentage points. **Bold**: its 95 % interval leaves "
            "out zero. The comparison is a paired bootstrap: the same test examples are drawn "
            f"{RESAMPLES:,} times with replacement, within each task, and both results are scored on what was drawn. "
            "The intervals are about other test examples, not about another training run, and each is of its pair "
            "alone."
        )
    ]
    for group in groups:
        over = group.tasks[0] if len(group.tasks) == 1 else f"the mean over {listing(group.tasks)}"
        blocks += [
            Text(f"Accuracy on {escaped(over)}:"),
            difference_matrix(group),
            pairs_table(group),
        ]
    return blocks
