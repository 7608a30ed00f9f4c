"""What is in the pictures, and their colours and ids."""

import re
import xml.etree.ElementTree as ET

from stages.reporting.figures import (
    inline,
    mass_figure,
    search_figure,
    similarity_figure,
    sweep_figure,
    trade_off_figure,
)
from stages.reporting.palette import COLOURS, standalone, with_variables
from stages.reporting.sweeps import find_sweeps
from stages.tasks.kinds import metric_named
from tests.reporting.made_up import TASKS, made_up_scores

SCORES = made_up_scores()
(SWEEP,) = find_sweeps(SCORES.results)
ACCURACY = metric_named("accuracy")


def texts(svg: str) -> list[str]:
    """The texts of a picture, in its order."""
    return ["".join(e.itertext()) for e in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def marks(svg: str, kind: str) -> int:
    """How many marks of a kind, points or lines, Vega has drawn."""
    groups = re.findall(rf'<g class="mark-{kind} role-mark[^"]*"[^>]*>(.*?)</g>', svg)
    return sum(group.count("<path") + group.count("<text") + group.count("<line") for group in groups)


def test_a_sweep_has_a_curve_a_method_and_the_two_models() -> None:
    figure = sweep_figure(ACCURACY, SWEEP, SCORES.results, TASKS)
    assert len(figure.pictures) == len(TASKS)
    for task, picture in zip(TASKS, figure.pictures, strict=True):
        found = texts(picture.svg)
        assert {task, "isotropic", "fisher", "λ of books"} <= set(found)
        assert marks(picture.svg, "line") == 2
        assert marks(picture.svg, "symbol") == 2 * 6 + 2  # two methods at six λ; the models
    assert figure.files[0] == "along-books-films-1.svg"


def test_the_trade_off_names_its_axes_and_ends() -> None:
    figure = trade_off_figure(ACCURACY, SWEEP, SCORES.results, TASKS)
    assert figure is not None
    (picture,) = figure.pictures
    wanted = {"accuracy on books", "mean accuracy on the 3 other tasks", "books", "films", "isotropic", "fisher"}
    assert wanted <= set(texts(picture.svg))
    assert marks(picture.svg, "line") == 2
    assert trade_off_figure(ACCURACY, SWEEP, SCORES.results, TASKS[:1]) is None  # nothing to trade for


def test_a_search_between_two_models_has_one_axis() -> None:
    points = [{"point": i, "λ a": i / 4, "λ b": 1 - i / 4, "t accuracy": 0.5, "score": 0.5 + i / 10} for i in range(5)]
    (picture,) = search_figure("sought", points).pictures
    assert marks(picture.svg, "symbol") == 5
    assert len(search_figure("sought", SCORES.sweeps["fisher-searched"]).pictures) == 4


def test_heat_maps_say_their_numbers() -> None:
    mass = mass_figure({"books": {("layer 0", "query"): 0.426, ("layer 0", "key"): 0.004, ("head", "head"): 0.57}})
    found = texts(mass.pictures[0].svg)
    assert {"43", "57", "·", "layer 0", "head", "query", "key"} <= set(found)
    matrix = {"a": {"a": 1.0, "b": None}, "b": {"a": None, "b": 1.0}}
    alike = similarity_figure({"overlap": matrix, "cosine": matrix})
    assert texts(alike.pictures[0].svg).count("–") == 2


def test_colours_become_variables() -> None:
    light = [colour for colour, _ in COLOURS.values()]
    assert len(set(light)) == len(light)
    svg = f'<svg><text fill="{COLOURS["ink"][0].upper()}"/></svg>'
    assert with_variables(svg).startswith('<svg><text fill="var(--ink, #')
    assert standalone(svg).count("--ink:") == 2


def test_ids_inside_a_page_are_the_pictures_own() -> None:
    svg = '<svg width="1"><clipPath id="clip0"/><g clip-path="url(#clip0)" aria-label="x: 1"/></svg>'
    opening = '<svg role="img" aria-label="a &amp; b" width="1">'
    inside = '<clipPath id="p-1-clip0"/><g clip-path="url(#p-1-clip0)"/></svg>'
    assert inline(svg, "p-1", "a & b") == opening + inside
