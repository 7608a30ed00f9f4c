"""A project with real dvc whose language models are evaluated by lm-evaluation-harness, from its YAML to the report."""

import html
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from ruamel.yaml import YAML

from stages.storage.digests import tree_sha256
from tests.language import in_order, letters_tokenizer, save, tiny_llama, words
from tests.project import Project

HALVES = {"sorted": 0.5, "turned": 0.5}
ITEMS = 40
TASK: dict[str, Any] = {
    "task": "order",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "data/items.jsonl"}},
    "output_type": "multiple_choice",
    "test_split": "test",
    "doc_to_text": "{{word}}",
    "doc_to_target": "{{right}}",
    "doc_to_choice": "{{[word[::-1], sorted]}}",
    "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
}


def project_of(root: Path) -> Project:
    """Two models that learn other things, a merge of them, and one task to evaluate them all on."""
    inputs = root / "inputs"
    (inputs / "tables").mkdir(parents=True)
    (inputs / "harness/data").mkdir(parents=True)
    save(tiny_llama(tied=True), inputs / "base", letters_tokenizer())
    for name, answer in (("sorted", in_order), ("turned", lambda word: word[::-1])):
        rows = [{"question": f"{word} ", "answer": answer(word)} for word in words(60)]
        pd.DataFrame(rows).to_json(inputs / f"tables/{name}.jsonl", orient="records", lines=True)
    items = [{"word": word, "sorted": in_order(word), "right": row % 2} for row, word in enumerate(words(ITEMS, 9))]
    (inputs / "harness/data/items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    YAML().dump(TASK, inputs / "harness/order.yaml")
    shared = {"kind": "causal-lm", "source": "tables", "prompt": "question", "completion": "answer", "max_length": 24}
    return Project(
        root / "project",
        {
            "sources": {
                name: {"path": str(inputs / name), "sha256": tree_sha256(inputs / name)}
                for name in ("base", "tables", "harness")
            },
            "tasks": {
                **{name: {**shared, "file": f"{name}.jsonl"} for name in HALVES},
                "order": {
                    "kind": "lm-eval",
                    "source": "harness",
                    "include": "order.yaml",
                    "tasks": ["order"],
                    "measures": ["acc", "acc_norm"],
                },
            },
            "finetune": {"epochs": 2, "batch_size": 8, "learning_rate": 5e-3},
            "fisher": {"estimator": "sketch", "examples": 16, "batch_size": 4},
            "models": {name: {"base": "base", "task": name} for name in HALVES},
            "merges": {"weighted": {"method": "fisher", "coefficients": dict(HALVES)}},
        },
    )


def read(project: Project, file: str) -> Any:
    return json.loads((project.root / file).read_text())


def test_from_its_yaml_to_the_report(tmp_path: Path) -> None:
    project = project_of(tmp_path)
    project.run("python", "-m", "stages.plan")
    project.run("python", "-m", "stages.plan", "--check")
    assert {"prepare@order", "evaluate-weighted", "report"} < set(project.repro())
    results = [*HALVES, "weighted"]
    values = {}
    for name in results:
        worth = read(project, f"results/eval/{name}/metrics.json")["tasks"]
        assert set(worth) == {*HALVES, "order"}
        each = read(project, f"results/eval/{name}/per_example.json")["tasks"]["order"]
        outputs = np.stack(
            pd.read_parquet(project.root / f"results/eval/{name}/predictions/order.parquet")["logits"].to_list()
        )
        assert outputs.shape == (ITEMS, 2)
        assert outputs[:, 0].tolist() == each["values"]
        values[name] = each["values"]
        own = worth["order"]
        assert own["acc"] == pytest.approx(np.mean(each["values"]))
        assert own["acc_norm"] == pytest.approx(outputs[:, 1].mean())
        assert own["acc_low"] <= own["acc"] <= own["acc_high"]
        assert own["examples"] == ITEMS
    assert len({tuple(own) for own in values.values()}) > 1, "what is compared differs"
    means = read(project, "results/scores/means.json")
    assert {name: own["acc"] for name, own in means.items()} == pytest.approx(
        {name: np.mean(own) for name, own in values.items()}
    )
    page = html.unescape((project.root / "results/report/report.html").read_text())
    assert "Test lm-eval acc in per cent" in page
    assert "the difference in lm-eval acc, in percentage points" in page, "significance"
    assert (project.root / "data/tasks/order/harness/data/items.jsonl").read_bytes() == (
        tmp_path / "inputs/harness/data/items.jsonl"
    ).read_bytes()
    project.run("python", "-m", "stages.publish", "sorted", "--to", "published")
    card = (project.root / "published/README.md").read_text()
    own = read(project, "results/eval/sorted/metrics.json")["tasks"]["order"]
    assert "Negative log-likelihood with its 95 % bootstrap interval." in card
    assert "| task | lm-eval acc, % | lm-eval acc_norm, % | examples |" in card
    assert f"| order | {100 * own['acc']:.1f} (" in card
    assert project.repro() == []

    project.edit_params(lambda params: params["tasks"]["order"].update(limit=10))
    again = project.repro()
    assert {"prepare@order", *(f"evaluate-{name}" for name in results), "scores", "report"} < set(again)
    assert not [stage for stage in again if stage.startswith(("finetune", "fisher", "merge", "fetch"))]
    for name in results:
        assert read(project, f"results/eval/{name}/per_example.json")["tasks"]["order"]["values"] == values[name][:10]

    source = tmp_path / "inputs/harness"
    (source / "order.yaml").write_text((source / "order.yaml").read_text() + "process_docs: !function utils.f\n")
    project.edit_params(lambda params: params["sources"]["harness"].update(sha256=tree_sha256(source)))
    refused = project.run("dvc", "repro", check=False)
    assert refused.returncode != 0
    assert "data/sources/harness/order.yaml: line" in refused.stderr
    assert "a tag such as !function is code, and none is run that comes with data" in refused.stderr
