"""Projects of language models with real dvc, from tables to the report and a published model."""

import html
import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from stages.reporting.writing import NOTHING, SHOWN
from stages.storage.digests import tree_sha256
from tests.language import CHAT, in_order, letters_tokenizer, save, tiny_bart, tiny_llama, words
from tests.project import Project

MERGES: dict[str, dict[str, Any]] = {
    "fisher": {"method": "fisher"},
    "blocks": {"method": "kfac"},
    "linear": {"method": "regmean"},
    "sought": {"method": "isotropic", "search": {"sampler": "grid", "points": 3}},
}


def project(root: Path, tasks: dict[str, dict[str, Any]], **finetune: Any) -> Project:
    """A project of two tasks with a model each, which the four merges are of; its inputs are beside it."""
    inputs, names = root / "inputs", list(tasks)
    return Project(
        root / "project",
        {
            "sources": {
                name: {"path": str(inputs / name), "sha256": tree_sha256(inputs / name)} for name in ("base", "tables")
            },
            "tasks": {name: {"source": "tables", "max_length": 24, **task} for name, task in tasks.items()},
            "finetune": {"epochs": 2, "batch_size": 8, "learning_rate": 5e-3, **finetune},
            "fisher": {"estimator": "sketch", "examples": 16, "batch_size": 4},
            "models": {name: {"base": "base", "task": name} for name in names},
            "merges": {name: {**merge, "coefficients": dict.fromkeys(names, 0.5)} for name, merge in MERGES.items()},
        },
    )


def read(project: Project, file: str) -> Any:
    return json.loads((project.root / file).read_text())


def check(project: Project, metrics: list[str], shown: list[str]) -> None:
    """Run it: every merge is evaluated on both tasks by these metrics, and the report has what was written."""
    project.run("python", "-m", "stages.plan")
    project.repro()
    tasks = list(project.params["tasks"])
    page = html.unescape((project.root / "results/report/report.html").read_text())
    scores = read(project, "results/scores/scores.json")["results"]
    assert {result["name"] for result in scores} == {*tasks, *MERGES}
    for result in scores:
        assert result["metrics"].keys() == set(tasks)
        for task in tasks:
            assert set(metrics) <= result["metrics"][task].keys()
            written = result["per_example"][task]["written"]
            assert len(written) == 3
            for each in written:
                assert each.keys() == {"prompt", "reference", "text"}
                assert each["prompt"].strip() in page
                text = each["text"] if len(each["text"]) <= SHOWN else f"{each['text'][:SHOWN]}…"
                row = rf"{re.escape(result['name'])}</th><td[^>]*>{re.escape(text or NOTHING)}</td>"
                assert re.search(row, page), (result["name"], text)
    assert "What the models write" in page
    assert "What the models write" in (project.root / "results/report/report.md").read_text()
    for text in shown:
        assert text in page
    sweep = pd.read_csv(project.root / "results/search/sought/sweep.csv")
    best = read(project, "results/search/sought/coefficients.json")
    assert best["metric"] == metrics[0]
    assert best["score"] == pytest.approx(sweep["score"].min()), "less is better"
    assert project.repro() == []


def published(project: Project, model: str) -> str:
    project.run("python", "-m", "stages.publish", model, "--to", "published")
    return (project.root / "published/README.md").read_text()


def test_a_project_of_causal_language_models(tmp_path: Path) -> None:
    """Prompts with completions, and conversations, by one base with a chat template; and their ensemble."""
    tables = tmp_path / "inputs/tables"
    tables.mkdir(parents=True)
    save(tiny_llama(tied=True), tmp_path / "inputs/base", letters_tokenizer(CHAT))
    rows = [{"question": f"{word} ", "answer": in_order(word)} for word in words(60)]
    chats = [
        {"chat": [{"role": "user", "content": word}, {"role": "assistant", "content": word[::-1]}]}
        for word in words(60, 1)
    ]
    for name, table in (("sums", rows), ("chats", chats)):
        (tables / f"{name}.jsonl").write_text("\n".join(map(json.dumps, table)))
    kind = {"kind": "causal-lm"}
    made = project(
        tmp_path,
        {
            "sums": {**kind, "file": "sums.jsonl", "prompt": "question", "completion": "answer"},
            "chats": {**kind, "file": "chats.jsonl", "messages": "chat"},
        },
    )
    check(made, ["negative_log_likelihood", "perplexity"], ["<|assistant|>", "Perplexity"])
    card = published(made, "sums")
    assert "pipeline_tag: text-generation\n" in card
    assert 'pipeline("text-generation", ' in card
    assert "**Validation negative log-likelihood:**" in card
    made.edit_params(
        lambda params: params["merges"].update(e={"method": "ensemble", "coefficients": {"sums": 1, "chats": 1}})
    )
    made.run("python", "-m", "stages.plan")
    made.repro()
    worth = read(made, "results/eval/e/metrics.json")["tasks"]
    assert worth.keys() == {"sums", "chats"}
    assert all(own["perplexity"] > 1 for own in worth.values())


def test_a_project_of_sequence_to_sequence_models(tmp_path: Path) -> None:
    """From scratch; λ are searched by the likelihood, and what is written is compared with the targets in the end."""
    tables = tmp_path / "inputs/tables"
    tables.mkdir(parents=True)
    save(tiny_bart(), tmp_path / "inputs/base")
    for seed, name in enumerate(("one", "two")):
        found = words(60, seed)
        frame = pd.DataFrame({"word": found, "letters": [in_order(word) for word in found]})
        frame.to_csv(tables / f"{name}.csv", index=False)
    task = {"kind": "seq2seq-lm", "input": "word", "target": "letters", "max_target_length": 12}
    made = project(tmp_path, {name: {**task, "file": f"{name}.csv"} for name in ("one", "two")}, from_scratch=True)
    check(made, ["negative_log_likelihood", "exact_match"], ["Exact match"])
    card = published(made, "one")
    assert "pipeline_tag: text2text-generation\n" in card
    assert "from transformers import AutoModelForSeq2SeqLM, AutoTokenizer\n" in card
    assert "AutoModelForSeq2SeqLM.from_pretrained(" in card
