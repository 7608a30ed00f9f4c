"""One experiment's part of a report: from its scores to sections."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from stages.reporting.blocks import Block, Section, Text
from stages.reporting.costs import costs_section, results_section
from stages.reporting.figures import (
    mass_figure,
    score_figure,
    search_figure,
    similarity_figure,
    sweep_figure,
    trade_off_figure,
)
from stages.reporting.finding import main_finding, what_was_merged
from stages.reporting.fisher_mass import mass_by_layer
from stages.reporting.metric_words import difference_introduction, slug, table_introduction, title
from stages.reporting.significance import RESAMPLES, Group, comparable_groups
from stages.reporting.sweeps import Sweep, find_sweeps, without_sweeps
from stages.reporting.tables import (
    adapters_table,
    difference_matrix,
    merges_table,
    models_table,
    pairs_table,
    score_table,
    secondary_tables,
    similarity_note,
    statistics_table,
    unverified_note,
)
from stages.reporting.transfers import transfer_figures
from stages.reporting.wording import escaped, listing
from stages.reporting.writing import writing_section
from stages.results.costs import Cost, ResultCost
from stages.results.scores import Result, Scores, tasks_by_metric
from stages.tasks.metrics import Metric


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
    note = unverified_note(experiment.scores)
    unverified = [Text(note)] if note else []  # wherever Fishers are shown
    overview += unverified
    overview += [
        table
        for table in (
            merges_table(results),
            adapters_table(results),
            models_table(results),
            statistics_table(results),
        )
        if table is not None
    ]

    found = [Section("overview", "In short", overview)]
    found += [_scores_section(metric, of_it, main, results) for metric, of_it in tasks_by_metric(results).items()]
    if groups:
        found.append(Section("significance", "Which differences are more than noise", _significance(groups)))
    if (writing := writing_section(main, tasks)) is not None:
        found.append(writing)
    along = _along(sweeps, results)
    along += [search_figure(name, points) for name, points in experiment.scores.sweeps.items() if points]
    if along:
        found.append(Section("coefficients", "Along λ", along))
    if transfers := transfer_figures(results):
        found.append(Section("transfers", "What donors give", transfers))
    fishers = experiment.scores.fishers
    if fishers:
        masses = {model: mass_by_layer(tensors) for model, tensors in fishers["tensors"].items()}
        found.append(Section("mass", "Where the Fisher mass lies", [mass_figure(masses), *unverified]))
    if fishers and len(fishers["tensors"]) > 1:
        partial = similarity_note(fishers)
        alike: list[Block] = [similarity_figure(fishers), *([Text(escaped(partial))] if partial else []), *unverified]
        found.append(Section("similarity", "How alike the Fishers are", alike))
    if experiment.result_costs:
        found.append(results_section(experiment.result_costs))
    if experiment.costs:
        found.append(costs_section(experiment.costs))
    return found


def _scores_section(metric: Metric, tasks: Sequence[str], main: Sequence[Result], results: Sequence[Result]) -> Section:
    """A metric's section: the tasks whose primary metric it is.

    Args:
        metric: of the section.
        tasks: all that have it.
        main: the results without those that differ in λ only.
        results: all of them.
    """
    main, results = ([result for result in several if result.tasks_of(metric)] for several in (main, results))
    blocks: list[Block] = [Text(table_introduction(metric)), score_table(metric, main, tasks)]
    if len(main) < len(results):
        blocks += [
            Text(
                "Of merges that differ in λ only, here and in the comparisons stands the one nearest to λ = ½, which "
                "no result has chosen."
            ),
            score_table(metric, results, tasks, summary=f"All {len(results)} results"),
        ]
    blocks += [score_figure(metric, main, tasks), *secondary_tables(main, tasks)]
    return Section(slug(metric), title(metric), blocks)


def _along(sweeps: Sequence[Sweep], results: Sequence[Result]) -> list[Block]:
    """The pictures along λ, sweep by sweep and metric by metric; names of the first metric's have none in them."""
    found: list[Block] = []
    for sweep in sweeps:
        for number, (metric, tasks) in enumerate(tasks_by_metric(results).items()):
            figures = (sweep_figure(metric, sweep, results, tasks), trade_off_figure(metric, sweep, results, tasks))
            for figure in figures:
                if figure is not None and figure.pictures:
                    name = f"{figure.name}-{slug(metric)}" if number else figure.name
                    found.append(replace(figure, name=name))
    return found


def _of_other_merges(groups: Sequence[Group]) -> list[Group]:
    """The groups whose merges are not all in one before them of the same metric, on more tasks."""
    kept: list[Group] = []
    seen: dict[Metric, set[str]] = {}
    for group in groups:
        merges = {result.name for result in group.results if result.role == "merge"}
        before = seen.setdefault(group.metric, set())
        if not merges <= before:
            kept.append(group)
            before |= merges
    return kept


def _significance(groups: Sequence[Group]) -> list[Block]:
    blocks: list[Block] = []
    introduced: set[Metric] = set()
    for group in groups:
        if group.metric not in introduced:
            blocks.append(Text(difference_introduction(group.metric, RESAMPLES)))
            introduced.add(group.metric)
        over = group.tasks[0] if len(group.tasks) == 1 else f"the mean over {listing(group.tasks)}"
        blocks += [
            Text(f"{title(group.metric)} on {escaped(over)}:"),
            difference_matrix(group),
            pairs_table(group),
        ]
    return blocks
