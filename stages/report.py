"""report: results/scores/ → results/report/{report.md, report.html, accuracy.svg, accuracy.csv, mean_accuracy.csv}.

The Markdown is the source; the page is the same text with the picture inside it, and opens offline.
"""

import base64
from collections.abc import Iterable, Sequence
from pathlib import Path

import altair as alt
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markdown_it import MarkdownIt

from stages.artifacts import atomic_directory
from stages.command import run_stage
from stages.params import load_params
from stages.paths import REPORT
from stages.scores import Result, read_scores
from stages.statistics import STATISTIC_NAMES, STEMS

MISSING = "–"
UNBROKEN = "\u00a0"  # a space at which a browser does not break the line


def report() -> None:
    """Write the report on every model and merge of params.yaml."""
    params = load_params()
    results = read_scores().results
    tasks = [task for task in params.tasks if any(task in result.metrics for result in results)]
    with atomic_directory(REPORT) as partial:
        write_report(results, tasks, partial)


def write_report(results: Sequence[Result], tasks: Sequence[str], out: Path) -> None:
    """Write the tables, the chart, the Markdown and the page into `out`."""
    long = pd.DataFrame(
        [
            {"name": result.name, "role": result.role, "task": task, **result.metrics[task]}
            for result in results
            for task in tasks
            if task in result.metrics
        ]
    )
    long.to_csv(out / "accuracy.csv", index=False)
    means = pd.DataFrame([{"name": r.name, "mean accuracy": r.metrics["mean"]["accuracy"]} for r in results])
    means.to_csv(out / "mean_accuracy.csv", index=False)
    _chart(long, means).save(out / "accuracy.svg")

    environment = Environment(
        loader=PackageLoader("stages"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
    )
    text = environment.get_template("report.md.jinja").render(
        accuracy_table=_accuracy_table(results, tasks),
        f1_table=_table(
            ["", *tasks],
            [[r.name, *(_percent(r.metrics.get(task, {}).get("macro_f1")) for task in tasks)] for r in results],
        ),
        merges_table=_merges_table(results),
        searched=[result.name for result in results if result.searched],
        statistics_table=_statistics_table(results),
        models_table=_models_table(results),
    )
    (out / "report.md").write_text(text, encoding="utf-8")
    # Label and model names are users' text: the parser escapes any HTML in them.
    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
    picture = base64.b64encode((out / "accuracy.svg").read_bytes()).decode()
    body = body.replace('src="accuracy.svg"', f'src="data:image/svg+xml;base64,{picture}"')
    (out / "report.html").write_text(environment.get_template("report.html.jinja").render(body=body), encoding="utf-8")


def _accuracy_table(results: Sequence[Result], tasks: Sequence[str]) -> str:
    # A mean over fewer tasks is not comparable, so it is not shown beside the others.
    means = {r.name: r.metrics["mean"] for r in results if all(task in r.metrics for task in tasks)}
    columns = {task: {r.name: r.metrics[task] for r in results if task in r.metrics} for task in tasks} | {
        "mean": means
    }

    def cell(name: str, column: str) -> str:
        entry = columns[column].get(name)
        if entry is None:
            return MISSING
        best = max(other["accuracy"] for other in columns[column].values())
        value = _percent(entry["accuracy"])
        shown = f"**{value}**" if entry["accuracy"] == best else value
        interval = (
            f"{UNBROKEN}({_percent(entry['accuracy_low'])}–{_percent(entry['accuracy_high'])})"
            if column != "mean"
            else ""
        )
        return shown + interval

    return _table(
        ["", "", *columns], [[r.name, r.role, *(cell(r.name, column) for column in columns)] for r in results]
    )


def _merges_table(results: Iterable[Result]) -> str:
    merged = [result for result in results if "coefficients" in result.origin]
    models = sorted({model for result in merged for model in result.origin["coefficients"]})
    rows = []
    for result in merged:
        λ = result.origin["coefficients"]
        options = ", ".join(f"{key} = {_plain(value)}" for key, value in result.origin.get("options", {}).items())
        heads = {"merge": "merged", "target": "the target's", "each": "each task's own"}.get(
            result.origin.get("heads", "")
        )
        shares = [f"{λ[model]:.3g}" if model in λ else MISSING for model in models]
        rows.append(
            [
                result.name,
                result.origin["method"] + (", λ searched" if result.searched else ""),
                *shares,
                options or MISSING,
                result.origin.get("target", MISSING),
                heads or MISSING,
            ]
        )
    return _table(["", "method", *models, "options", "target", "heads"], rows) if rows else ""


def _statistics_table(results: Iterable[Result]) -> str:
    names = {STEMS[kind]: name for kind, name in STATISTIC_NAMES.items()}
    found = {
        (model, stem): entry[stem]
        for result in results
        for model, entry in result.origin.get("models", {}).items()
        for stem in names
        if stem in entry
    }
    keys = ["estimator", "likelihood", "examples", "seed"]
    rows = [[model, names[stem], *(_plain(facts.get(key)) for key in keys)] for (model, stem), facts in found.items()]
    return _table(["of", "statistic", *keys], sorted(rows)) if rows else ""


def _models_table(results: Iterable[Result]) -> str:
    models = [result for result in results if result.role == "model"]
    keys = ["method", "base", "examples", "epochs", "learning_rate", "batch_size", "seed"]
    return _table(["", *keys], [[r.name, *(_plain(r.origin.get(key)) for key in keys)] for r in models])


def _chart(long: pd.DataFrame, means: pd.DataFrame) -> alt.Chart | alt.LayerChart | alt.FacetChart:
    """A bar per model and task, with its interval; a panel a task. Models, merges and baselines differ in colour."""
    names = means["name"].tolist()
    y = alt.Y("name:N", sort=names, title=None)
    colour = alt.Color("role:N", title=None, scale=alt.Scale(scheme="tableau10"), legend=alt.Legend(orient="top"))
    panel = alt.layer(
        alt.Chart()
        .mark_bar()
        .encode(x=alt.X("accuracy:Q", title="accuracy", axis=alt.Axis(format="%")), y=y, color=colour),
        alt.Chart().mark_rule(strokeWidth=2).encode(x="accuracy_low:Q", x2="accuracy_high:Q", y=y),
    ).properties(width=190, height=alt.Step(22))
    return panel.facet(
        alt.Facet("task:N", title=None, sort=long["task"].unique().tolist()), columns=4, data=long
    ).configure_view(stroke=None)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---" for _ in header], *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _percent(value: float | None) -> str:
    return MISSING if value is None else f"{100 * value:.1f}"


def _plain(value: object) -> str:
    if value is None:
        return MISSING
    return f"{value:g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    run_stage(report)
