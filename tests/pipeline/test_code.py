"""The code that a stage depends on, beside what it imports and what it runs."""

import ast
from pathlib import Path

import pytest

from stages.pipeline.code import CHOSEN_AT_RUN_TIME, PACKAGE, READ, UNFOLLOWED, code_of, code_sha256
from tests.project import ROOT, Project, tiny_params

BY_NAME = ("import_module", "__import__", "declared")  # what imports a module of a name that it is given


def test_every_import_is_read_as_it_is_written() -> None:
    """No relative imports, and none by a name that only a run knows but those that are said."""
    chosen = set()
    for file in PACKAGE.rglob("*.py"):
        module = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{file}: a relative import"
                chosen |= {module for alias in node.names if alias.name in BY_NAME}
            if isinstance(node, ast.Import):
                assert not any(alias.name.startswith("importlib") for alias in node.names), file
            assert not (isinstance(node, ast.Name) and node.id == "__import__"), file
    assert chosen - {"stages.running.section"} == CHOSEN_AT_RUN_TIME.keys() | {
        "stages.tasks",
        "stages.storage.statistics",
    }, "who imports by name: tell stages/pipeline/code.py"


@pytest.mark.parametrize("module", sorted(UNFOLLOWED))
def test_what_is_not_followed_is_there(module: str) -> None:
    path = PACKAGE.parent / module.replace(".", "/")
    assert path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def test_what_a_stage_depends_on() -> None:
    text = "tasks.kinds.text_classification.kind"
    fisher, finetune, merge = code_of("fisher", text), code_of("finetune", text), code_of("merge")
    assert {"stages/fisher.py", "stages/estimation/passes.py", "stages/curvature", "stages/running/placement.py"} < set(
        fisher
    )
    assert {"stages/tasks/data.py", "stages/tasks/prediction.py", "stages/storage/tensors.py"} < set(fisher)
    assert not any("report" in path or "search" in path or "merging" in path for path in fisher)
    assert {"stages/storage/checkpoint.py", "stages/training", "stages/tasks/metrics.py"} < set(finetune)
    assert not any("merging" in path for path in finetune), "no rule of a merge is code of a training"
    assert not any("curvature" in path or "likelihood" in path for path in finetune), "nor is a likelihood"
    assert "stages/merging" in merge, "rules are chosen by name"
    assert "stages/tasks/kinds" in code_of("prepare"), "a new kind changes no dvc.yaml"
    images = code_of("finetune", "tasks.kinds.image_classification.kind")
    assert "stages/tasks/kinds/image_classification/images.py" in images
    assert not any("kinds" in path and "text_classification" not in path for path in finetune), "no other kind's code"
    assert "stages/tasks/text_kind.py" in code_of("finetune", "tasks.kinds.masked_lm.kind")
    assert {"stages/reporting", "stages/storage/statistics"} < set(code_of("report"))
    for paths in (fisher, finetune, merge):
        assert paths == sorted(paths)
        assert all((ROOT / path).exists() for path in paths)
        assert "stages/params" not in paths


def test_a_state_is_of_the_code_that_saved_it(tmp_path: Path) -> None:
    """Of all of it, and of no other."""
    project = Project(tmp_path / "project", tiny_params(tmp_path / "inputs"))
    kind = "tasks.kinds.masked_lm.kind"
    digests = f"from stages.pipeline.code import *; print(code_sha256('estimation.passes', '{kind}'), *READ)"

    def digest() -> str:
        return project.run("python", "-c", digests).stdout

    before = digest()
    assert before.split() == [code_sha256("estimation.passes", kind), *READ]
    for file in ("reporting/page.py", "merging/dare.py", "params/schema.py", "running/errors.py"):
        (project.root / "stages" / file).open("a").write("\n# other\n")
        assert digest() == before, file
    for file in (
        "curvature/rules.py",
        "tasks/data.py",
        "tasks/kinds/masked_lm/settings.py",
        "running/placement.py",
        "estimation/passes.py",
    ):
        (project.root / "stages" / file).open("a").write("\n# other\n")
        after = digest()
        assert after != before, file
        before = after
