"""The report's tables."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from stages.reporting.blocks import Cell, Table
from stages.reporting.metric_words import words
from stages.reporting.significance import Comparison, Group
from stages.reporting.wording import MEAN, UNBROKEN, escaped, p_value, plain, share
from stages.results.scores import Result, Scores
from stages.results.shown import MISSING, capital, shown, shown_difference
from stages.storage.statistic import GIVEN, UNVERIFIED, nothing_binds
from stages.storage.statistics import STATISTICS
from stages.tasks.metrics import Metric

ADAPTERS = {"lora": "LoRA", "ia3": "(IA)³"}
HEADS = {"merge": "merged", "target": "the target's", "each": "each task's own"}


def score_table(metric: Metric, results: Sequence[Result], tasks: Sequence[str], summary: str = "") -> Table:
    """The metric with its interval, by task, and the mean over all; the best of each column is bold.

    Args:
        metric: the tasks' primary one.
        results: each with some of the tasks.
        tasks: all that have this metric.
        summary: what stands in the table's place until it is opened.
    """
    columns: dict[str, dict[str, float]] = {
        task: {r.name: r.score(task) for r in results if task in r.metrics} for task in tasks
    }
    entries = {(r.name, task): r.metrics[task] for r in results for task in tasks if task in r.metrics}
    # A mean over fewer tasks is not comparable, so it is not shown beside the others.
    whole = [r for r in results if all(task in r.metrics for task in tasks)]
    if whole and len(tasks) > 1:
        columns[MEAN] = {r.name: r.means[metric.name] for r in whole}

    def cell(name: str, column: str) -> Cell:
        value = columns[column].get(name)
        if value is None:
            return Cell(MISSING)
        ends = [entries[name, column][f"{metric.name}_{end}"] for end in ("low", "high") if column != MEAN]
        interval = f"({'–'.join(shown(metric, end) for end in ends)})" if ends else ""
        return Cell(shown(metric, value), interval, strong=value == metric.best(columns[column].values()))

    rows: list[list[Cell | str]] = [[r.name, r.role, *(cell(r.name, column) for column in columns)] for r in results]
    return Table(["", "", *columns], rows, named_by=2, summary=summary)


def secondary_tables(results: Sequence[Result], tasks: Sequence[str]) -> list[Table]:
    """The metrics beside the primary one, a table each, by task."""
    found = dict.fromkeys(
        metric for r in results for task in tasks if task in r.metrics for metric in r.secondary(task)
    )
    return [_secondary_table(metric, results, tasks) for metric in found]


def _secondary_table(metric: Metric, results: Sequence[Result], tasks: Sequence[str]) -> Table:
    rows = [[r.name, *(shown(metric, r.metrics.get(task, {}).get(metric.name)) for task in tasks)] for r in results]
    unit = ", in per cent" if metric.unit == "share" else ""
    return Table(["", *tasks], rows, summary=f"{capital(words(metric).in_full)}{unit}")


def difference_matrix(group: Group) -> Table:
    """By how much each row's result exceeds each column's, on the mean; in percentage points if these are shares."""
    metric = group.metric

    def cell(first: Result, second: Result) -> Cell:
        if first is second:
            return Cell("")
        found = group.comparisons[first.name, second.name]
        tone: Literal["", "better", "worse"] = ""
        if found.is_beyond_noise:  # so both ends of the interval are on one side
            tone = "better" if metric.gain(found.low) > 0 else "worse"
        return Cell(shown_difference(metric, found.difference), strong=found.is_beyond_noise, tone=tone)

    rows: list[list[Cell | str]] = [
        [first.name, *(cell(first, second) for second in group.results)] for first in group.results
    ]
    return Table(["", *(result.name for result in group.results)], rows)


def pairs_table(group: Group) -> Table:
    """Every pair's difference with interval and p-value: on the mean, and task by task."""
    tasks, metric = group.tasks, group.metric

    def cell(found: Comparison) -> Cell:
        ends = f"{UNBROKEN}to{UNBROKEN}".join(shown_difference(metric, end) for end in (found.low, found.high))
        note = f"({ends}) {p_value(found.p_value)}"
        return Cell(shown_difference(metric, found.difference), note, strong=found.is_beyond_noise)

    rows: list[list[Cell | str]] = [
        [
            f"{first.name} − {second.name}",
            cell(group.comparisons[first.name, second.name]),
            *(cell(group.comparisons_by_task[task][first.name, second.name]) for task in tasks if len(tasks) > 1),
        ]
        for i, first in enumerate(group.results)
        for second in group.results[i + 1 :]
    ]
    header = ["", MEAN, *tasks] if len(tasks) > 1 else ["", *tasks]
    return Table(header, rows, summary=f"Each of the {len(rows)} pairs, with intervals and p-values")


def merges_table(results: Sequence[Result]) -> Table | None:
    """Every merge's and baseline's method, λ and options; None where there is none."""
    merged = [result for result in results if "coefficients" in result.origin]
    models = sorted({model for result in merged for model in result.origin["coefficients"]})
    rows = []
    for result in merged:
        λ = result.origin["coefficients"]
        options = ", ".join(
            f"{_words(key)} = {plain(value)}" for key, value in result.origin.get("options", {}).items()
        )
        rows.append(
            [
                result.name,
                result.origin["method"] + (", λ searched" if result.searched else ""),
                *(share(λ[model]) if model in λ else MISSING for model in models),
                options or MISSING,
                result.origin.get("target", MISSING),
                HEADS.get(result.origin.get("heads", ""), MISSING),
            ]
        )
    header = ["", "method", *(f"λ {model}" for model in models), "options", "target", "heads"]
    return Table(header, rows, summary=f"The {len(rows)} merges and baselines: λ and options") if rows else None


def statistics_table(results: Sequence[Result]) -> Table | None:
    """How the statistics that merges used were estimated; None where none was used."""
    names = {kind.stem: kind.title for kind in STATISTICS.values()}
    found = {
        (model, stem): entry[stem]
        for result in results
        for model, entry in result.origin.get("models", {}).items()
        for stem in names
        if stem in entry
    }
    keys = ["estimator", "likelihood", "examples", "seed"]
    rows = [
        [model, names[stem] + (f", {UNVERIFIED}" if facts.get("estimator") == GIVEN else "")]
        + [plain(facts.get(key)) for key in keys]
        for (model, stem), facts in found.items()
    ]
    summary = "How the statistics were estimated"
    return Table(["of", "statistic", *keys], sorted(rows), named_by=2, summary=summary) if rows else None


def adapters_table(results: Sequence[Result]) -> Table | None:
    """Of merges that are LoRA adapters: their rank, and how much of the merged change is lost; None without any."""
    rows = []
    for result in results:
        adapter = result.origin.get("adapter")
        if result.role == "merge" and adapter is not None:
            errors = adapter["relative_errors"]
            worst = max(errors, key=errors.__getitem__, default=None)
            most = MISSING if worst is None else f"{share(errors[worst])} in {worst}"
            rows.append([result.name, plain(adapter["rank"]), share(adapter["relative_error"]), most])
    header = ["", "rank", "lost of the change’s norm", "most of one weight’s"]
    return Table(header, rows, summary="Merges that are LoRA adapters: what their rank loses") if rows else None


def unverified_note(scores: Scores) -> str:
    """Which models' Fishers nothing binds to their checkpoints, in a sentence of Markdown; nothing where none is."""
    merged = (result.origin.get(UNVERIFIED, []) for result in scores.results)
    models = sorted({model for several in (*merged, scores.fishers.get(UNVERIFIED, [])) for model in several})
    return nothing_binds([escaped(model) for model in models])


def models_table(results: Sequence[Result]) -> Table:
    """How the models were made; the column of adapters is there if one of them is one."""
    models = [result for result in results if result.role == "model"]
    keys = ["task", "method", "base", "examples", "epochs", "learning_rate", "batch_size", "seed"]
    if any("adapter" in result.origin for result in models):
        keys.insert(keys.index("base") + 1, "adapter")
    rows: list[list[Cell | str]] = [
        [r.name, *(_adapter(r.origin) if key == "adapter" else plain(r.origin.get(key)) for key in keys)]
        for r in models
    ]
    return Table(["", *map(_words, keys)], rows, summary="How the models were made")


def _adapter(origin: Mapping[str, Any]) -> str:
    """What adapter a model is: the type and rank of one that was trained, or a finished one's name."""
    adapter = origin.get("adapter")
    if not isinstance(adapter, Mapping):
        return plain(adapter)
    rank = [f"rank {adapter['rank']}"] if "rank" in adapter else []
    kinds = [words for key, words in (("rslora", "rsLoRA"), ("dora", "DoRA")) if adapter.get(key)]
    kind = str(adapter["type"])
    return ", ".join([ADAPTERS.get(kind, kind), *rank, *kinds])


def similarity_note(fishers: Mapping[str, Any]) -> str:
    """Which pairs of models are compared on a part of their parameters only, in a sentence; nothing where none is."""
    partial = [
        f"{first} and {second} ({100 * part:.0f} % of {first}’s)"
        for first, row in fishers["shared"].items()
        for second, part in row.items()
        if first < second and 0 < part < 1
    ]
    return f"Compared on the parameters they share: {', '.join(partial)}." if partial else ""


def _words(key: str) -> str:
    return key.replace("_", " ")
