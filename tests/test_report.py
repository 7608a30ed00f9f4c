"""The report's tables and page, from made-up results."""

import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

from stages.report import write_report
from stages.scores import Result


def entry(accuracy: float) -> dict[str, float]:
    return {
        "accuracy": accuracy,
        "accuracy_low": accuracy - 0.05,
        "accuracy_high": accuracy + 0.05,
        "macro_f1": accuracy - 0.01,
        "examples": 100,
    }


RESULTS = [
    Result(
        "books",
        "model",
        {"books": entry(0.9), "films": entry(0.7), "mean": {"accuracy": 0.8}},
        {"method": "finetuned", "base": "tiny", "examples": 40, "epochs": 2, "learning_rate": 1e-4, "seed": 0},
    ),
    Result("films", "model", {"films": entry(0.85), "mean": {"accuracy": 0.85}}, {"method": "brought in", "base": "b"}),
    Result(
        "both",
        "merge",
        {"books": entry(0.8), "films": entry(0.8), "mean": {"accuracy": 0.8}},
        {
            "method": "fisher",
            "options": {"floor": 1e-6, "normalize": "l2"},
            "target": "books",
            "heads": "merge",
            "coefficients": {"books": 0.25, "films": 0.75},
            "models": {
                "books": {"fisher": {"estimator": "exact", "likelihood": "categorical", "examples": 7, "seed": 3}}
            },
        },
    ),
]


def test_tables(tmp_path: Path) -> None:
    write_report(RESULTS, ["books", "films"], tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "| books | model | **90.0**\u00a0(85.0–95.0) | 70.0\u00a0(65.0–75.0) | **80.0** |" in text
    assert "| films | model | – | **85.0**\u00a0(80.0–90.0) | – |" in text  # one task's mean is no mean
    assert "| both | fisher | 0.25 | 0.75 | floor = 1e-06, normalize = l2 | books | merged |" in text
    assert "| books | Fisher | exact | categorical | 7 | 3 |" in text
    assert "| books | finetuned | tiny | 40 | 2 | 0.0001 | – | 0 |" in text


class Page(HTMLParser):
    """The pictures, tags and outside references of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.images: list[str] = []
        self.references: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for key, value in attrs:
            if tag == "img" and key == "src":
                self.images.append(value or "")
            elif key in ("src", "href"):
                self.references.append(value or "")


def test_page_is_self_contained(tmp_path: Path) -> None:
    write_report(RESULTS, ["books", "films"], tmp_path)
    page = Page()
    page.feed((tmp_path / "report.html").read_text())
    assert page.tags.count("table") == 5
    assert [image.split(",")[0] for image in page.images] == ["data:image/svg+xml;base64"]
    assert page.references == []
    assert "script" not in page.tags


def test_picture_shows_every_name_and_task(tmp_path: Path) -> None:
    write_report(RESULTS, ["books", "films"], tmp_path)
    words = "".join(ET.parse(tmp_path / "accuracy.svg").getroot().itertext())
    for word in ("books", "films", "both"):
        assert word in words


def test_names_are_text_not_markup(tmp_path: Path) -> None:
    odd = Result("books", "model", RESULTS[0].metrics, {"method": "finetuned", "base": "<script>alert(1)</script>|x"})
    write_report([odd], ["books", "films"], tmp_path)
    assert "<script" not in (tmp_path / "report.html").read_text()


def test_same_bits_twice(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_report(RESULTS, ["books", "films"], tmp_path / name)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()
