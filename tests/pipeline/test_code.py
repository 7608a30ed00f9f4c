"""The code that a stage depends on, beside what it imports and what it runs."""

import ast
from hashlib import sha256
from pathlib import Path

import pytest

from stages.params import parse_params
from stages.pipeline.code import CHOSEN_AT_RUN_TIME, PACKAGE, READ, UNFOLLOWED, code_of, code_sha256, recorded_code
from stages.pipeline.stage_code import stage_code
from stages.running.errors import InputError
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
    by_stage = {  # what these import of a kind, a method or a statistic is said by stages/pipeline/stage_code.py
        *("stages.tasks", "stages.tasks.reading", "stages.storage.statistics"),
        *("stages.merging", "stages.merging.methods", "stages.merging.rules"),
    }
    assert chosen - {"stages.running.section"} == CHOSEN_AT_RUN_TIME.keys() | by_stage, "who imports by name: say so"


@pytest.mark.parametrize("module", sorted(UNFOLLOWED))
def test_what_is_not_followed_is_there(module: str) -> None:
    path = PACKAGE.parent / module.replace(".", "/")
    assert path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def test_the_code_of_modules() -> None:
    text = "tasks.kinds.text_classification.kind"
    fisher, finetune, merge = code_of("fisher", text), code_of("finetune", text), code_of("merge")
    assert {"stages/fisher.py", "stages/estimation/passes.py", "stages/curvature/rules.py"} < fisher.keys()
    assert {"stages/running/placement.py", "stages/tasks/data.py", "stages/tasks/prediction.py"} < fisher.keys()
    assert "stages/storage/tensors.py" in fisher
    assert not any("report" in path or "search" in path or "merging" in path for path in fisher)
    assert {
        "stages/storage/checkpoint.py",
        "stages/training/finetuning.py",
        "stages/tasks/metrics.py",
    } < finetune.keys()
    assert not any("merging" in path for path in finetune), "no rule of a merge is code of a training"
    assert not any("curvature" in path or "likelihood" in path for path in finetune), "nor is a likelihood"
    assert {"stages/merging/checkpoints.py", "stages/merging/rules.py"} < merge.keys()
    assert not any("stages/merging/methods/" in path and "/rule.py" in path for path in code_of("prepare"))
    images = code_of("finetune", "tasks.kinds.image_classification.kind")
    assert "stages/tasks/kinds/image_classification/images.py" in images
    assert not any("kinds" in path and "text_classification" not in path for path in finetune), "no other kind's code"
    assert "stages/tasks/text_kind.py" in code_of("finetune", "tasks.kinds.masked_lm.kind")
    assert {"stages/reporting/page.py", "stages/storage/statistics/gram.py"} < code_of("report").keys()
    assert any(path.startswith("stages/reporting/templates/") for path in code_of("report"))
    for paths in (fisher, finetune, merge, code_of("report")):
        assert list(paths) == sorted(paths)
        assert all(sha256((ROOT / path).read_bytes()).hexdigest() == digest for path, digest in paths.items())
        assert not any(path.startswith("stages/params") or path.endswith(".pyc") for path in paths)


def test_how_a_gguf_file_is_read_is_code_of_its_own_fetch(tmp_path: Path) -> None:
    """What is pinned is the file; of what it is de-quantised to, the code decides."""
    content = tiny_params(tmp_path / "inputs")
    content["sources"]["small"] = {"path": "small.gguf", "sha256": 64 * "0", "gguf": "small.gguf"}
    params = parse_params(content)
    own = {f"stages/storage/{name}.py" for name in ("gguf", "gguf_tokenizer", "tensors", "checkpoint_files")}
    assert own < stage_code("fetch@small", params).keys()
    others = set().union(*(stage_code(stage, params) for stage in ("fetch@base", "finetune-books", "fisher-books")))
    assert not any("gguf" in path for path in others)
    assert stage_code("fetch@small", params).items() > stage_code("fetch@base", params).items()


def test_modules_by_a_pattern() -> None:
    rule = code_of("merging.methods.ties.*").keys()
    assert {f"stages/merging/methods/ties/{name}.py" for name in ("options", "rule", "trimming")} < rule
    with pytest.raises(KeyError, match="tise"):
        code_of("merging.methods.tise.*")
    with pytest.raises(KeyError, match="no_stage"):
        code_of("merge", "no_stage")


def test_a_state_is_of_the_code_that_saved_it(tmp_path: Path) -> None:
    """Of all of it, and of no other."""
    project = Project(tmp_path / "project", tiny_params(tmp_path / "inputs"))
    kind = "tasks.kinds.masked_lm.kind"
    digests = f"from stages.pipeline.code import *; print(code_sha256('estimation.passes', '{kind}'), *READ)"

    def digest() -> str:
        return project.run("python", "-c", digests).stdout

    before = digest()
    assert before.split() == [code_sha256("estimation.passes", kind), *READ]
    for file in ("reporting/page.py", "merging/methods/dare/rule.py", "params/schema.py", "running/errors.py"):
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


def test_a_damaged_list_of_code_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert recorded_code("merge-it") == {}
    Path("results/code").mkdir(parents=True)
    for content in ('{"stages/merge.py": "00', "", "[1]"):
        Path("results/code/merge-it.json").write_text(content)
        with pytest.raises(InputError, match=r"code/merge-it\.json: cannot be read; run `dvc repro --force settings`"):
            recorded_code("merge-it")
