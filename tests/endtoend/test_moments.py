"""Second moments of others through params.yaml, with real dvc: from a published file to the report and on."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from stages.storage.digests import tree_sha256
from tests.project import Project, tiny_params
from tests.tiny import batch, tiny_bert, tiny_tokenizer

NOTHING_BINDS = "Nothing binds the Fisher of books to its checkpoint"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose model `books` is a finished one, beside its optimizer's moments."""
    root = tmp_path_factory.mktemp("moments")
    params = tiny_params(root / "inputs")
    theirs = root / "inputs/theirs"
    model = tiny_bert(seed=3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for seed in range(3):
        model(**batch(4, 8, seed=seed), labels=torch.tensor([0, 1, 1, 0])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(theirs)
    tiny_tokenizer().save_pretrained(theirs)
    moments = {name: optimizer.state[parameter]["exp_avg_sq"] for name, parameter in model.named_parameters()}
    (root / "inputs/moments").mkdir()
    save_file(moments, root / "inputs/moments/exp_avg_sq.safetensors")
    pins = {
        name: {"path": f"../inputs/{name}", "sha256": tree_sha256(root / "inputs" / name)}
        for name in ("theirs", "moments")
    }
    params["sources"]["theirs"] = pins["theirs"]
    fisher = pins["moments"] | {"file": "exp_avg_sq.safetensors", "unverified": True}
    params["models"]["books"] |= {"base": "theirs", "finetune": False, "fisher": fisher}
    project = Project(root / "project", params)
    project.run("python", "-m", "stages.plan")
    return project


def test_without_the_key_nothing_runs(project: Project) -> None:
    whole = project.params
    project.edit_params(lambda params: params["models"]["books"]["fisher"].pop("unverified"))
    refused = project.run("dvc", "repro", check=False)
    assert refused.returncode != 0
    assert "models.books.fisher: `file`: nothing binds exp_avg_sq.safetensors to the checkpoint" in refused.stderr
    assert not (project.root / "models/fishers").exists()
    project.write_params(whole)


def test_from_the_file_to_the_report(project: Project) -> None:
    ran = project.repro()
    assert {"fisher-books", "merge-fisher", "similarity", "report"} < set(ran)
    assert project.repro() == []
    settings = json.loads((project.root / "results/settings/fisher-books.json").read_text())
    assert settings["source"]["unverified"] is True
    assert "unverified" not in (project.root / "results/settings/fisher-films.json").read_text()
    found = load_file(project.root / "models/fishers/books/fisher.safetensors")
    wanted = load_file(project.root.parent / "inputs/moments/exp_avg_sq.safetensors")
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], values) for name, values in wanted.items())
    assert NOTHING_BINDS in (project.root / "models/merged/fisher/README.md").read_text()
    assert "Nothing binds" not in (project.root / "models/merged/average/README.md").read_text()
    text = (project.root / "results/report/report.md").read_text()
    assert text.count(NOTHING_BINDS) == 3  # in short, beside the mass, and beside the similarities
    assert "| books | Fisher, unverified | given | – | – | – |" in text
    assert (project.root / "results/report/report.html").read_text().count(NOTHING_BINDS) == 3
    assert json.loads((project.root / "results/similarity/similarity.json").read_text())["unverified"] == ["books"]


def test_published_it_says_so_too(project: Project, tmp_path: Path) -> None:
    project.run("python", "-m", "stages.publish", "books", "--to", str(tmp_path / "out"))
    text = (tmp_path / "out/README.md").read_text().split("## The Fisher")[1]
    assert NOTHING_BINDS in text
    assert "It fits these weights only" not in text
    assert "| estimator | `given`: second moments of gradients that were taken as they came;" in text
    digest = tree_sha256(project.root.parent / "inputs/moments/exp_avg_sq.safetensors")
    assert f"| origin | a local file: exp_avg_sq.safetensors (sha256 `{digest}`) |" in text
    assert "examples |" not in text
    assert json.loads((tmp_path / "out/fisher.json").read_text())["unverified"] is True


def test_a_changed_checkpoint_needs_it_again(project: Project) -> None:
    theirs = project.root.parent / "inputs/theirs"
    changed = load_file(theirs / "model.safetensors")
    changed["classifier.bias"] += 1
    save_file(changed, theirs / "model.safetensors", {"format": "pt"})
    shutil.rmtree(project.root / "results/report")
    project.edit_params(lambda params: params["sources"]["theirs"].update(sha256=tree_sha256(theirs)))
    before = json.loads((project.root / "models/fishers/books/fisher.json").read_text())
    assert "fisher-books" in project.repro("models/dvc.yaml:fisher-books")
    after = json.loads((project.root / "models/fishers/books/fisher.json").read_text())
    assert before["checkpoint"] != after["checkpoint"]
    assert before["fingerprint"] == after["fingerprint"]
