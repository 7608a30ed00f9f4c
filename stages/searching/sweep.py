"""Every point of a search, as a table and as a picture."""

from collections.abc import Sequence

import altair as alt
import pandas as pd

from stages.searching.sampling import Coefficients
from stages.tasks.metrics import Metric


def sweep_table(
    points: Sequence[Coefficients], scores: Sequence[Sequence[float]], means: Sequence[float], columns: Sequence[str]
) -> pd.DataFrame:
    """A row per point: its λ, the tasks' scores, and the mean that counts."""
    return pd.DataFrame(
        [
            {"point": i}
            | {f"λ {model}": λ for model, λ in point.items()}
            | dict(zip(columns, scored, strict=True))
            | {"score": mean}
            for i, (point, scored, mean) in enumerate(zip(points, scores, means, strict=True))
        ]
    )


def sweep_chart(
    table: pd.DataFrame, models: Sequence[str], columns: Sequence[str], metric: Metric, winner: int
) -> alt.FacetChart | alt.LayerChart | alt.HConcatChart:
    """The score against λ: a curve per task for two models, else a panel per model; the winner is marked."""
    chosen = table.assign(chosen=table["point"] == winner)
    score = alt.Scale(zero=False)
    axis = alt.Axis(format=".1%") if metric.unit == "share" else alt.Axis()
    colours = alt.Scale(domain=[False, True], range=["#4c78a8", "#e45756"])
    if len(models) == 2:
        long = chosen.melt(
            id_vars=[f"λ {models[0]}", "chosen"], value_vars=[*columns, "score"], var_name="on", value_name=metric.name
        )
        x = alt.X(f"λ {models[0]}:Q", title=f"λ of {models[0]} (the rest: {models[1]})")
        y = alt.Y(f"{metric.name}:Q", scale=score, axis=axis, title=f"{metric.title}, validation")
        colour = alt.Color("on:N", title=None, sort=[*columns, "score"])
        mark = alt.Chart(long).transform_filter("datum.chosen").mark_rule(strokeDash=[4, 4], color="gray").encode(x=x)
        return alt.layer(alt.Chart(long).mark_line(point=True).encode(x=x, y=y, color=colour), mark).properties(
            width=480, height=300
        )
    panels = [
        alt.Chart(chosen)
        .mark_circle(opacity=0.8)
        .encode(
            x=alt.X(f"λ {model}:Q", title=f"λ of {model}", scale=alt.Scale(domain=[0, 1])),
            y=alt.Y(
                "score:Q",
                scale=score,
                axis=axis,
                title=f"mean {metric.title}, validation" if model == models[0] else None,
            ),
            color=alt.Color("chosen:N", legend=None, scale=colours),
            size=alt.Size("chosen:N", legend=None, scale=alt.Scale(domain=[False, True], range=[40, 160])),
        )
        .properties(width=190, height=190)
        for model in models
    ]
    return alt.hconcat(*panels)
