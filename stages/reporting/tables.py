"""The report's tables."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from stages.reporting.blocks import Cell, Table
from stages.reporting.significance import Comparison, Group, compare_on
from stages.reporting.wording import MEAN, MISSING, UNBROKEN, p_value, percent, plain, points, share
from stages.results.scores import Result
from stages.storage.statistics import STATISTICS

HEADS = {"merge": "merged", "target": "the target's", "each": "each task's own"}


def accuracy_table(results: Sequence[Result], tasks: Sequence[str], summary: str = "") -> Table:
    """Accuracy in per cent with its interval, by task, and the mean over all; the best of each column is bold."""
    columns: dict[str, dict[str, Mapping[str, float]]] = {
        task: {r.name: r.metrics[task] for r in results if task in r.metrics} for task in tasks
    }
    # A mean over fewer tasks is not comparable, so it is not shown beside the others.
    whole = [r for r in results if all(task in r.metrics for task in tasks)]
    if whole and len(tasks) > 1:
        columns[MEAN] = {r.name: {"accuracy": r.mean_accuracy} for r in whole}

    def cell(name: str, column: str) -> Cell:
        entry = columns[column].get(name)
        if entry is None:
            return Cell(MISSING)
        best = max(other["accuracy"] for other in columns[column].values())
        interval = f"({percent(entry['accuracy_low'])}–{percent(entry['accuracy_high'])})" if column != MEAN else ""
        return Cell(percent(entry["accuracy"]), interval, strong=entry["accuracy"] == best)

    rows: list[list[Cell | str]] = [[r.name, r.role, *(cell(r.name, column) for column in columns)] for r in results]
    return Table(["", "", *columns], rows, named_by=2, summary=summary)


def f1_table(results: Sequence[Result], tasks: Sequence[str]) -> Table:
    """Macro-averaged F1 in per cent, by task."""
    rows = [[r.name, *(percent(r.metrics.get(task, {}).get("macro_f1")) for task in tasks)] for r in results]
    return Table(["", *tasks], rows, summary="Macro-averaged F1, in per cent")


def difference_matrix(group: Group) -> Table:
    """How much more accurate each row's result is than each column's, on the mean, in percentage points."""

    def cell(first: Result, second: Result) -> Cell:
        if first is second:
            return Cell("")
        found = group.comparisons[first.name, second.name]
        tone: Literal["", "better", "worse"] = "better" if found.low > 0 else "worse" if found.high < 0 else ""
        return Cell(points(found.difference), strong=found.is_beyond_noise, tone=tone)

    rows: list[list[Cell | str]] = [
        [first.name, *(cell(first, second) for second in group.results)] for first in group.results
    ]
    return Table(["", *(result.name for result in group.results)], rows)


def pairs_table(group: Group) -> Table:
    """Every pair's difference with interval and p-value: on the mean, and task by task."""
    tasks = group.tasks

    def cell(found: Comparison) -> Cell:
        interval = f"({points(found.low)}{UNBROKEN}to{UNBROKEN}{points(found.high)})"
        note = f"{interval} {p_value(found.p_value)}"
        return Cell(points(found.difference), note, strong=found.is_beyond_noise)

    rows: list[list[Cell | str]] = [
        [
            f"{first.name} − {second.name}",
            cell(group.comparisons[first.name, second.name]),
            *(cell(compare_on([task], first, second)) for task in tasks if len(tasks) > 1),
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
    rows = [[model, names[stem], *(plain(facts.get(key)) for key in keys)] for (model, stem), facts in found.items()]
    summary = "How the statistics were estimated"
    return Table(["of", "statistic", *keys], sorted(rows), named_by=2, summary=summary) if rows else None


def models_table(results: Sequence[Result]) -> Table:
    """How the models were made."""
    keys = ["task", "method", "base", "examples", "epochs", "learning_rate", "batch_size", "seed"]
    rows: list[list[Cell | str]] = [
        [r.name, *(plain(r.origin.get(key)) for key in keys)] for r in results if r.role == "model"
    ]
    return Table(["", *map(_words, keys)], rows, summary="How the models were made")


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
