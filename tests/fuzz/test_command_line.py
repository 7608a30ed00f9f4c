"""Bad input as a user meets it: a stage says one line on stderr and exits with 1."""

from collections.abc import Callable
from pathlib import Path

import pytest

from stages.storage.digests import write_contents
from tests.fuzz.menagerie import write_model
from tests.project import Project, tiny_params

FINETUNED, FISHERS = Path("models/finetuned"), Path("models/fishers")
BOOKS = "data/sources/tables/books.csv"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose sources are there and whose models are as if they had been fine-tuned."""
    root = tmp_path_factory.mktemp("command-line")
    project = Project(root / "project", tiny_params(root / "inputs"))
    for number, name in enumerate(("books", "films")):
        write_model(project.root / FINETUNED / name, project.root / FISHERS / name, number)
    project.run("python", "-m", "stages.plan")
    project.run("python", "-m", "stages.fetch", "tables")
    return project


def with_content(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda file: file.write_bytes(change(file.read_bytes()))


def listed(spoil: Callable[[Path], object]) -> Callable[[Path], object]:
    """The edit, of a file that came so: its directory's list of contents says the same."""

    def edit(file: Path) -> None:
        spoil(file)
        write_contents(file.parent)

    return edit


@pytest.mark.parametrize(
    ("stage", "file", "spoil", "message"),
    [
        ("plan", "params.yaml", with_content(lambda content: content + b"\nmerges: {"), "params.yaml: not valid YAML"),
        ("merge fisher", "params.yaml", with_content(lambda _: b"a: " + b"[" * 5000), "nested too deeply"),
        ("merge ../x", "params.yaml", with_content(bytes), "params.yaml: merges: there is no merge '../x'"),
        (
            "fetch base",
            "params.yaml",
            with_content(lambda content: content.replace(b"sha256: ", b"sha256: 0")),
            "sha256",
        ),
        (
            "merge fisher",
            FINETUNED / "films/model.safetensors",
            with_content(lambda content: content[:-1]),
            "not a whole safetensors file",
        ),
        (
            "merge average",
            FINETUNED / "films/model.safetensors",
            with_content(lambda content: content[:-1] + b"x"),
            "its contents are not what checkpoint.json says",
        ),
        ("merge fisher", FISHERS / "films/fisher.json", Path.unlink, "fisher.json: not found"),
        ("merge fisher", FISHERS / "films/fisher.json", with_content(lambda content: content[:99]), "not valid JSON"),
        (
            "prepare books",
            BOOKS,
            with_content(lambda content: content + b" "),
            "its contents are not what contents.json says",
        ),
        ("prepare books", BOOKS, listed(with_content(lambda _: b"text\n\xff")), "not UTF-8 text"),
        ("prepare books", BOOKS, listed(with_content(lambda _: b"a\nb,c,d")), "more cells than"),
        ("finetune books", BOOKS, Path.unlink, "task.json: not found"),
    ],
)
def test_a_line_and_exit_status_1(
    project: Project, stage: str, file: str | Path, spoil: Callable[[Path], object], message: str
) -> None:
    path = project.root / file
    before = path.read_bytes()
    spoil(path)
    name, *arguments = stage.split(" ")
    try:
        result = project.stage(f"stages.{name}", *arguments)
    finally:
        path.write_bytes(before)
    assert result.returncode == 1
    lines = [line for line in result.stderr.splitlines() if line]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    assert message in lines[0]
    assert not (project.root / "models/merged").exists() or not list((project.root / "models/merged").iterdir())
