"""A project with real dvc whose models have tokens of their own: merged, searched and evaluated."""

import json
from typing import Any

import pytest
from safetensors.torch import load_file
from transformers import AutoTokenizer

from stages.storage.digests import tree_sha256
from tests.project import Project, tiny_params
from tests.tiny import tiny_bert, tiny_tokenizer

EMBEDDINGS = "bert.embeddings.word_embeddings.weight"
HALVES = {"books": 0.5, "films": 0.5}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The models come from bases with another token each."""
    root = tmp_path_factory.mktemp("vocabularies")
    params = tiny_params(root / "inputs")
    for seed, (name, tokens) in enumerate({"base": ["the film"], "other": ["is dull", "the film"]}.items()):
        directory = root / "inputs" / name
        tiny_bert(seed=seed, vocab_size=20 + len(tokens)).save_pretrained(directory)
        tokenizer = tiny_tokenizer()
        tokenizer.add_tokens(tokens)
        tokenizer.save_pretrained(directory)
        params["sources"][name] = {"path": str(directory), "sha256": tree_sha256(directory)}
    params["models"]["films"]["base"] = "other"
    params["merges"] = {"average": {"method": "isotropic", "coefficients": dict(HALVES)}}
    project = Project(root / "project", params)
    project.run("python", "-m", "stages.plan")
    return project


def test_without_the_key_the_merge_is_refused(project: Project) -> None:
    refused = project.run("dvc", "repro", check=False)
    assert refused.returncode != 0
    assert "`vocabulary: shared`" in refused.stderr + refused.stdout


def test_with_it_tokens_are_matched(project: Project) -> None:
    search = {"sampler": "grid", "points": 3}
    entries: dict[str, dict[str, Any]] = {
        "average": {"method": "isotropic", "vocabulary": "union"},
        "fisher": {"method": "fisher", "vocabulary": "shared"},
        "sought": {"method": "fisher", "vocabulary": "union", "search": search},
    }
    merges = {name: {**entry, "coefficients": dict(HALVES)} for name, entry in entries.items()}
    project.edit_params(lambda params: params.update(merges=merges))
    project.run("python", "-m", "stages.plan")
    project.repro()
    sizes = {"average": 22, "fisher": 21, "sought": 22}
    for name, size in sizes.items():
        merged = project.root / "models/merged" / name
        assert len(load_file(merged / "model.safetensors")[EMBEDDINGS]) == size
        vocabulary = AutoTokenizer.from_pretrained(merged).get_vocab()
        assert vocabulary["the film"] == 20
        assert vocabulary.get("is dull") == (21 if size == 22 else None)
        origin = json.loads((project.root / "results/eval" / name / "origin.json").read_text())
        assert origin["vocabulary"]["rule"] == entries[name]["vocabulary"]
        settings = json.loads((project.root / f"results/settings/merge-{name}.json").read_text())
        assert settings["vocabulary"] == entries[name]["vocabulary"]
    models = [load_file(project.root / f"models/finetuned/{name}/model.safetensors")[EMBEDDINGS] for name in HALVES]
    average = load_file(project.root / "models/merged/average/model.safetensors")[EMBEDDINGS]
    assert average[20].allclose((models[0][20] + models[1][21]) / 2)
    assert average[21].equal(models[1][20])
    assert "sought" in (project.root / "results/report/report.html").read_text()


def test_the_default_is_in_no_settings(project: Project) -> None:
    """So stages that know nothing of the key do not run again."""
    project.edit_params(lambda params: params["merges"]["average"].update(vocabulary="same"))
    project.run("dvc", "repro", "settings")
    assert "vocabulary" not in json.loads((project.root / "results/settings/merge-average.json").read_text())
