"""The report's charts, drawn by Vega without a browser."""

import io
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import altair as alt
import pandas as pd

from stages.reporting.blocks import Figure, Picture
from stages.reporting.fisher_mass import SHOWN_KINDS
from stages.reporting.metric_words import slug, title, trade_off_direction
from stages.reporting.palette import LIGHT, SERIES, with_variables
from stages.reporting.sweeps import Sweep, own_task
from stages.reporting.wording import listing
from stages.results.scores import Result, searched_metric
from stages.results.shown import shown, shown_difference, with_unit
from stages.tasks.metrics import Metric

Chart = alt.Chart | alt.LayerChart | alt.HConcatChart | alt.FacetChart
SHAPES = {"model": "circle", "merge": "square", "baseline": "diamond"}
FONT = "system-ui, sans-serif"
WIDTH = 215  # px of a plot: with its labels it fits on a phone
# A browser's letters may be wider than those that Vega has laid the picture out with.
PADDING = {"left": 14, "top": 4, "right": 12, "bottom": 12}


def picture(chart: Chart, description: str) -> Picture:
    """Draw a chart in the palette's colours."""
    text = {"labelFont": FONT, "titleFont": FONT, "labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal"}
    text |= {"labelColor": LIGHT["ink"], "titleColor": LIGHT["muted"], "labelLimit": 280}
    lines = {"gridColor": LIGHT["grid"], "domainColor": LIGHT["muted"], "tickColor": LIGHT["muted"]}
    configured = chart.properties(padding=PADDING, background="transparent").configure(
        axis={**text, **lines, "labelFlush": False},  # the last label would touch the one before it
        legend={**text, "symbolStrokeWidth": 2},
        title={"font": FONT, "fontSize": 13, "anchor": "start", "color": LIGHT["ink"], "offset": 8},
        text={"font": FONT, "fontSize": 12, "color": LIGHT["ink"]},
        view={"stroke": None},
    )
    stream = io.StringIO()
    configured.save(stream, format="svg")
    return Picture(with_variables(stream.getvalue()), description)


def inline(svg: str, prefix: str, description: str) -> str:
    """The picture for use inside a page: with ids of its own, one name instead of one for each of its marks."""
    svg = re.sub(r' (aria-label|aria-roledescription|aria-hidden|role)="[^"]*"', "", svg)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", svg)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{escape(description)}" ', 1)


def score_figure(metric: Metric, results: Sequence[Result], tasks: Sequence[str]) -> Figure:
    """Every result's value of the metric, the tasks' primary one, with its interval, a picture a task."""
    pictures = []
    for task in tasks:
        rows = [
            {"name": r.name, "role": r.role, **{key: r.metrics[task][key] for key in _fields(metric)}, "task": task}
            for r in results
            if task in r.metrics
        ]
        said = f"{title(metric)} on {task} of each model, merge and baseline, with 95 % intervals"
        pictures.append(picture(_score_chart(metric, pd.DataFrame(rows), results, task), said))
    return Figure(
        slug(metric),
        pictures,
        f"Test {metric.title} with 95 % intervals. Circles are single models, squares merges, diamonds baselines.",
    )


def _fields(metric: Metric) -> tuple[str, str, str]:
    """The metric and the ends of its interval, as a result's entry for a task has them."""
    return metric.name, f"{metric.name}_low", f"{metric.name}_high"


def _axis(metric: Metric, format_: str, ticks: int) -> alt.Axis:
    """An axis of a metric's values, in per cent by `format_` if they are shares."""
    return alt.Axis(format=format_, tickCount=ticks) if metric.unit == "share" else alt.Axis(tickCount=ticks)


def _score_chart(metric: Metric, rows: pd.DataFrame, results: Sequence[Result], task: str) -> Chart:
    value, low, high = _fields(metric)
    names = [result.name for result in results if result.name in set(rows["name"])]
    y = alt.Y("name:N", sort=names, title=None, axis=_names_axis())
    roles = list(SHAPES)
    colour = alt.Color("role:N", legend=None, scale=alt.Scale(domain=roles, range=[LIGHT[role] for role in roles]))
    shape = alt.Shape("role:N", legend=None, scale=alt.Scale(domain=roles, range=list(SHAPES.values())))
    axis = alt.Axis(format="%", tickCount=4, grid=True) if metric.unit == "share" else alt.Axis(tickCount=4, grid=True)
    base = alt.Chart(rows)
    return alt.layer(
        base.mark_rule(strokeWidth=2).encode(
            x=alt.X(f"{low}:Q", scale=alt.Scale(zero=False, nice=True), title=metric.title, axis=axis),
            x2=f"{high}:Q",
            y=y,
            color=colour,
        ),
        base.mark_point(filled=True, size=70, opacity=1).encode(x=f"{value}:Q", y=y, color=colour, shape=shape),
    ).properties(width=WIDTH, height=alt.Step(24), title=task)


def sweep_figure(metric: Metric, sweep: Sweep, results: Sequence[Result], tasks: Sequence[str]) -> Figure:
    """A metric along λ with its interval, a picture a task, a line a method; the two models are marked at the ends.

    Args:
        metric: the tasks' primary one.
        sweep: merges along λ.
        results: the models are among them.
        tasks: all that have this metric.
    """
    ends = {result.name: result for result in results if result.name in (sweep.target, sweep.other)}
    found = []
    for task in tasks:
        rows = [
            {"λ": λ, "method": line.label, **{key: merge.metrics[task][key] for key in _fields(metric)}}
            for line in sweep.lines
            for λ, merge in line.merges
            if task in merge.metrics
        ]
        marks = [
            {"λ": 1.0 if name == sweep.target else 0.0, "model": name, metric.name: ends[name].score(task)}
            for name in (sweep.other, sweep.target)
            if name in ends and task in ends[name].metrics
        ]
        if rows:
            methods = listing([line.label for line in sweep.lines])
            words = f"{title(metric)} on {task} along λ of {sweep.target}, by {methods}"
            found.append(picture(_sweep_chart(metric, rows, marks, sweep, task), words))
    return Figure(
        f"along-{sweep.target}-{sweep.other}",
        found,
        f"Test {metric.title} as λ of {sweep.target} goes from 0 to 1; the rest of the weight is {sweep.other}’s. "
        "Bands are 95 % intervals. Open circles: the two models themselves.",
    )


def _sweep_chart(metric: Metric, rows: Sequence[Any], marks: Sequence[Any], sweep: Sweep, task: str) -> Chart:
    colour = _by_method([line.label for line in sweep.lines])
    x = alt.X("λ:Q", title=f"λ of {sweep.target}", scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(tickCount=6))
    value, low, high = _fields(metric)
    y = alt.Y(f"{value}:Q", title=metric.title, scale=alt.Scale(zero=False), axis=_axis(metric, ".0%", 6))
    base = alt.Chart(pd.DataFrame(rows))
    layers: list[Any] = [
        base.mark_area(opacity=0.13).encode(x=x, y=alt.Y(f"{low}:Q"), y2=f"{high}:Q", color=colour),
        base.mark_line(strokeWidth=2, point=alt.OverlayMarkDef(size=28)).encode(x=x, y=y, color=colour),
    ]
    if marks:
        layers.append(
            alt.Chart(pd.DataFrame(marks))
            .mark_point(filled=False, size=110, strokeWidth=2, color=LIGHT["model"], opacity=1, clip=False)
            .encode(x=x, y=y)
        )
    return alt.layer(*layers).properties(width=WIDTH, height=190, title=task)


def trade_off_figure(metric: Metric, sweep: Sweep, results: Sequence[Result], tasks: Sequence[str]) -> Figure | None:
    """The target's own task against the mean of the other tasks along λ; None where there is no such mean.

    Args:
        metric: the tasks' primary one.
        sweep: merges along λ.
        results: the models are among them.
        tasks: all that have this metric.
    """
    own = own_task(sweep.target, results)
    others = [task for task in tasks if task != own]

    def place(result: Result) -> dict[str, float] | None:
        if own is None or own not in tasks or not others or not all(task in result.metrics for task in tasks):
            return None
        return {"own": result.score(own), "others": sum(result.score(task) for task in others) / len(others)}

    rows = [
        {"λ": λ, "shown": f"{λ:g}", "method": line.label, **found}
        for line in sweep.lines
        for λ, merge in line.merges
        if (found := place(merge)) is not None
    ]
    ends = [
        {"model": result.name, **found}
        for result in results
        if result.name in (sweep.target, sweep.other) and (found := place(result)) is not None
    ]
    if not rows:
        return None
    words = f"{title(metric)} on {own} against the mean over {listing(others)}, along λ of {sweep.target}"
    return Figure(
        f"trade-off-{sweep.target}-{sweep.other}",
        [picture(_trade_off_chart(metric, rows, ends, sweep, str(own), others), words)],
        f"What {sweep.target} gives up on its own task, {own}, for the others: {trade_off_direction(metric)}. A curve "
        f"is one method, its points are merges, the largest for λ = 1 of {sweep.target} and the smallest for λ = 0. "
        "Open circles: the two models themselves.",
    )


def _trade_off_chart(
    metric: Metric, rows: Sequence[Any], ends: Sequence[Any], sweep: Sweep, own: str, others: Sequence[str]
) -> Chart:
    alone = len(others) == 1
    along = f"{metric.title} on {others[0]}" if alone else f"mean {metric.title} on the {len(others)} other tasks"
    zoomed, axis = alt.Scale(zero=False, padding=14), _axis(metric, ".0%", 6)
    x = alt.X("others:Q", title=along, scale=zoomed, axis=axis)
    y = alt.Y("own:Q", title=f"{metric.title} on {own}", scale=zoomed, axis=axis)
    colour = _by_method([line.label for line in sweep.lines])
    base = alt.Chart(pd.DataFrame(rows))
    layers: list[Any] = [
        base.mark_line(strokeWidth=2).encode(x=x, y=y, color=colour, order="λ:Q"),
        base.mark_point(filled=True, opacity=1).encode(
            x=x, y=y, color=colour, size=alt.Size("λ:Q", legend=None, scale=alt.Scale(domain=[0, 1], range=[20, 110]))
        ),
    ]
    if ends:
        models = alt.Chart(pd.DataFrame(ends))
        layers += [
            models.mark_point(filled=False, size=170, strokeWidth=2, color=LIGHT["model"], opacity=1).encode(x=x, y=y),
            models.mark_text(dy=-16, fontWeight="bold", color=LIGHT["model"]).encode(x=x, y=y, text="model:N"),
        ]
    return alt.layer(*layers).properties(width=300, height=270)


def _by_method(labels: Sequence[str]) -> alt.Color:
    colours = [SERIES[i % len(SERIES)] for i in range(len(labels))]
    legend = alt.Legend(orient="top", title=None, columns=2, symbolType="stroke", symbolOpacity=1)
    return alt.Color("method:N", sort=list(labels), scale=alt.Scale(domain=list(labels), range=colours), legend=legend)


def search_figure(name: str, points: Sequence[Mapping[str, float]]) -> Figure:
    """The score on the validation splits against each model's λ: a picture a model, one alone where there are two."""
    models = [column.removeprefix("λ ") for column in points[0] if column.startswith("λ ")]
    metric = searched_metric(points)
    best = metric.best(point["score"] for point in points)
    axis = alt.Axis(format=".1%") if metric.unit == "share" else alt.Axis()
    winner = next(i for i, point in enumerate(points) if point["score"] == best)
    frame = pd.DataFrame(points).assign(chosen=[i == winner for i in range(len(points))])
    shown = models[:1] if len(models) == 2 else models
    tones = alt.Scale(domain=[False, True], range=[LIGHT["merge"], LIGHT["series-2"]])
    sizes = alt.Scale(domain=[False, True], range=[36, 150])

    def chart(model: str) -> Chart:
        rows = pd.DataFrame(
            {"λ": frame[f"λ {model}"], "score": frame["score"], "chosen": frame["chosen"]}
        )  # a field's name may have no dot or bracket
        return (
            alt.Chart(rows)
            .mark_circle(opacity=0.8)
            .encode(
                x=alt.X("λ:Q", title=f"λ of {model}", scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(tickCount=6)),
                y=alt.Y("score:Q", title="mean score", scale=alt.Scale(zero=False), axis=axis),
                color=alt.Color("chosen:N", legend=None, scale=tones),
                size=alt.Size("chosen:N", legend=None, scale=sizes),
            )
            .properties(width=WIDTH, height=180)
        )

    return Figure(
        f"search-{name}",
        [picture(chart(model), f"Validation score of every point against λ of {model}") for model in shown],
        f"The search for {name}: {len(points)} points, each a merge scored on validation splits. The best, "
        f"{with_unit(metric, best)}, is marked.",
    )


def mass_figure(masses: Mapping[str, Mapping[tuple[str, str], float]]) -> Figure:
    """Where each model's Fisher mass lies, by layer and kind of tensor: a heat map a model."""
    places: dict[str, None] = {}
    for mass in masses.values():
        places |= dict.fromkeys(layer for layer, _ in mass)
    present = {kind for mass in masses.values() for _, kind in mass}
    kinds = [kind for kind in SHOWN_KINDS if kind in present]
    most = max((value for mass in masses.values() for value in mass.values()), default=1.0)

    def chart(model: str, mass: Mapping[tuple[str, str], float]) -> Chart:
        rows = [
            {"layer": layer, "kind": kind, "share": value, "shown": _whole_percent(value)}
            for (layer, kind), value in mass.items()
        ]
        layers = [place for place in places if place in {row["layer"] for row in rows}]
        return _heat_map(rows, ("kind", kinds), ("layer", layers), most, (24, 22), model)

    return Figure(
        "fisher-mass",
        [
            picture(chart(model, mass), f"Share of the Fisher mass of {model} by layer and kind of tensor, in per cent")
            for model, mass in masses.items()
        ],
        "Share of each Fisher’s mass (the sum of its entries), in per cent, by layer and by what a tensor is there; a "
        "dot is less than one half per cent. All maps have one scale.",
    )


def _whole_percent(value: float) -> str:
    return f"{100 * value:.0f}" if value >= 0.005 else "·"


def similarity_figure(fishers: Mapping[str, Any]) -> Figure:
    """How alike the models' Fishers are: two heat maps, of the overlap and of the cosine."""
    titles = {"overlap": "overlap", "cosine": "cosine"}

    def chart(measure: str) -> Chart:
        matrix = fishers[measure]
        rows = [
            {"first": first, "second": second, "share": value or 0.0, "shown": "–" if value is None else f"{value:.2f}"}
            for first, row in matrix.items()
            for second, value in row.items()
        ]
        names = list(matrix)
        return _heat_map(rows, ("second", names), ("first", names), 1.0, (44, 30), titles[measure])

    return Figure(
        "similarity",
        [picture(chart(measure), f"Matrix of the models’ Fishers: {title}") for measure, title in titles.items()],
        "How alike the models’ Fishers are, from 0 (no parameter matters to both) to 1 (the same up to a factor). The "
        "overlap is the cosine of the square roots of the diagonals: every entry counts by its share of the mass. In "
        "the cosine of the diagonals themselves, the few largest entries decide.",
    )


def gain_picture(
    metric: Metric, cells: Sequence[Any], targets: Sequence[str], donors: Sequence[str], most: float, method: str
) -> Picture:
    """A grid of targets (rows) and donors: the score, its difference in brackets, the deeper the larger that is.

    Args:
        metric: of all of the cells.
        cells: with `target`, `donor`, `score` and `difference` from the target alone.
        targets: in the order of the rows.
        donors: in the order of the columns.
        most: the largest gain or loss of all pictures beside each other, without its sign.
        method: the title.
    """
    rows = [
        {
            **cell,
            "size": abs(cell["difference"]),
            "tone": "better" if metric.gain(cell["difference"]) >= 0 else "worse",
            "shown": f"{shown(metric, cell['score'])} ({shown_difference(metric, cell['difference'])})",
        }
        for cell in cells
    ]
    tone = alt.Scale(domain=["better", "worse"], range=[LIGHT["better"], LIGHT["worse"]])
    base = alt.Chart(pd.DataFrame(rows)).encode(
        x=alt.X("donor:N", sort=list(donors), title="donor", axis=_names_axis(angle=-50)),
        y=alt.Y("target:N", sort=list(targets), title=None, axis=_names_axis()),
    )
    chart = alt.layer(
        base.mark_rect(cornerRadius=2, stroke=LIGHT["paper"], strokeWidth=1).encode(
            fill=alt.Fill("tone:N", scale=tone, legend=None),
            opacity=alt.Opacity("size:Q", legend=None, scale=alt.Scale(domain=[0, most or 1.0], range=[0.08, 0.6])),
        ),
        base.mark_text(fontSize=11).encode(text="shown:N"),
    ).properties(width=alt.Step(84), height=alt.Step(34), title=method)
    return picture(chart, f"{title(metric)} on each target’s task, by donor: {method}")


def _heat_map(
    rows: Sequence[Any],
    columns: tuple[str, Sequence[str]],
    lines: tuple[str, Sequence[str]],
    most: float,
    step: tuple[int, int],
    title: str,
) -> Chart:
    """Cells with their `shown` text; the deeper, the larger `share` is against `most`."""
    x = alt.X(f"{columns[0]}:N", sort=list(columns[1]), title=None, axis=_names_axis(angle=-50))
    y = alt.Y(f"{lines[0]}:N", sort=list(lines[1]), title=None, axis=_names_axis())
    depth = alt.Opacity("share:Q", legend=None, scale=alt.Scale(domain=[0, most or 1.0], range=[0.06, 1]))
    base = alt.Chart(pd.DataFrame(rows))
    return alt.layer(
        base.mark_rect(fill=LIGHT["heat"], cornerRadius=2, stroke=LIGHT["paper"], strokeWidth=1).encode(
            x=x, y=y, opacity=depth
        ),
        base.mark_text(fontSize=11).encode(x=x, y=y, text="shown:N"),
    ).properties(width=alt.Step(step[0]), height=alt.Step(step[1]), title=title)


def _names_axis(angle: float = 0) -> alt.Axis:
    """An axis of names: no line, no ticks."""
    return alt.Axis(ticks=False, domain=False, labelPadding=5, labelAngle=angle)


def bars_figure(name: str, values: Mapping[str, float], title: str, caption: str, format_: str = "~s") -> Figure:
    """A bar for every name, longest first as they are given, with its value written at its end.

    Args:
        name: of the figure's file.
        values: name → value, not negative.
        title: of the axis, with the unit.
        caption: of the figure.
        format_: of the values, in D3's language.
    """
    frame = pd.DataFrame({"name": list(values), "value": list(values.values())})
    y = alt.Y("name:N", sort=list(values), title=None, axis=_names_axis())
    x = alt.X("value:Q", title=title, axis=alt.Axis(format="~s", tickCount=5))
    base = alt.Chart(frame)
    chart = alt.layer(
        base.mark_bar(color=LIGHT["merge"], height=14, cornerRadiusEnd=2).encode(x=x, y=y),
        base.mark_text(align="left", dx=5).encode(x=x, y=y, text=alt.Text("value:Q", format=format_)),
    ).properties(width=WIDTH, height=alt.Step(24))
    return Figure(name, [picture(chart, caption)], caption)
