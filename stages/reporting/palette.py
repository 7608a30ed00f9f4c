"""The report's colours, for light and dark pages. Pictures name them as CSS variables: `var(--ink, #1b2129)`."""

import re

# Name → on light, on dark. What the light one is in a picture, `with_variables` makes a variable: all must differ.
COLOURS = {
    "paper": ("#fffffe", "#14181d"),
    "ink": ("#1b2129", "#e6eaef"),
    "muted": ("#58626d", "#9ba6b2"),
    "grid": ("#dde2e7", "#343c45"),
    "heat": ("#5aa5e0", "#2a67a3"),
    "model": ("#7a5230", "#d3a67d"),
    "merge": ("#1c6bb0", "#6db3f8"),
    "baseline": ("#6b7079", "#a4acb6"),
    "series-1": ("#1b6cb1", "#6cb2f7"),
    "series-2": ("#c0530a", "#f28d43"),
    "series-3": ("#2c7a4b", "#64c487"),
    "series-4": ("#7b4db3", "#b795f2"),
    "series-5": ("#0d7c80", "#4cc1c4"),
    "series-6": ("#b2366e", "#f07dab"),
    "series-7": ("#746611", "#d0b949"),
    "better": ("#2a7849", "#63c386"),
    "worse": ("#b9501a", "#f18c42"),
}
LIGHT = {name: light for name, (light, _) in COLOURS.items()}
SERIES = [LIGHT[name] for name in COLOURS if name.startswith("series-")]


def with_variables(svg: str) -> str:
    """The picture with each colour of the palette as its variable, which falls back to the one for light pages."""
    names = {light: name for name, light in LIGHT.items()}
    return re.sub(
        "|".join(names), lambda found: f"var(--{names[found[0].lower()]}, {found[0]})", svg, flags=re.IGNORECASE
    )


def declarations(dark: bool) -> str:
    """CSS that sets the variables."""
    return " ".join(f"--{name}: {colours[dark]};" for name, colours in COLOURS.items())


def standalone(svg: str) -> str:
    """The picture as a file of its own, which brings the variables and a background with it."""
    style = (
        f":root {{ {declarations(dark=False)} background: var(--paper); }} "
        f"@media (prefers-color-scheme: dark) {{ :root {{ {declarations(dark=True)} }} }}"
    )
    return re.sub(r"(<svg[^>]*>)", rf"\1<style>{style}</style>", svg, count=1)
