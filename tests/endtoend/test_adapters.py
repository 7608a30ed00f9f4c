"""Adapters with real dvc: trained and brought in, measured, merged as models and as adapters, evaluated."""

import json
from pathlib import Path
from typing import Any

import peft
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from stages.storage.digests import tree_sha256
from tests.language import in_order, save, tiny_llama, words
from tests.project import Project

LORA: dict[str, Any] = {"type": "lora", "rank": 4, "targets": ["q_proj", "v_proj"]}
EQUAL = {"ann": 1, "bob": 1}


def project(root: Path, adapters: dict[str, dict[str, Any]], merges: dict[str, dict[str, Any]]) -> Project:
    """A project of two causal language models, each an adapter of one base."""
    inputs = root / "inputs"
    save(tiny_llama(0, tied=True), inputs / "base")
    (inputs / "tables").mkdir()
    for seed, name in enumerate(adapters):
        rows = [{"question": f"{word} ", "answer": in_order(word)} for word in words(60, seed)]
        (inputs / "tables" / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = {"kind": "causal-lm", "source": "tables", "prompt": "question", "completion": "answer", "max_length": 24}
    return Project(
        root / "project",
        {
            "sources": {
                name: {"path": str(inputs / name), "sha256": tree_sha256(inputs / name)} for name in ("base", "tables")
            },
            "tasks": {name: {**task, "file": f"{name}.jsonl"} for name in adapters},
            "finetune": {"epochs": 1, "batch_size": 8, "learning_rate": 5e-3},
            "fisher": {"estimator": "sketch", "examples": 16, "batch_size": 4},
            "models": {
                name: {"base": "base", "task": name, "finetune": {"adapter": adapter}}
                for name, adapter in adapters.items()
            },
            "merges": {name: {"coefficients": dict(EQUAL), **merge} for name, merge in merges.items()},
        },
    )


def read(project: Project, file: str) -> Any:
    return json.loads((project.root / file).read_text())


def names(file: Path) -> set[str]:
    with safe_open(file, framework="pt") as tensors:
        return set(tensors.keys())


def test_lora_adapters_of_two_ranks_from_training_to_the_report(tmp_path: Path) -> None:
    """Ranks 4 and 16: no model has the base's weights; the merges are whole models, and adapters of rank 6."""
    wide = {**LORA, "rank": 16, "rslora": True}
    methods = {name: {"method": name} for name in ("fisher", "regmean", "kfac")}
    low = {f"{name}-low": {**merge, "adapter": {"rank": 6}} for name, merge in methods.items() if name in ("fisher",)}
    sought = {"sought": {"method": "fisher", "search": {"sampler": "grid", "points": 3}}}
    made = project(tmp_path, {"ann": LORA, "bob": wide}, methods | low | sought)
    made.run("python", "-m", "stages.plan")
    made.repro()
    weight = "model.layers.0.self_attn.q_proj.weight"
    for name in ("ann", "bob"):
        directory = made.root / "models/finetuned" / name
        assert not list(directory.glob("model*.safetensors"))
        assert all(".lora_" in tensor for tensor in names(directory / "adapter_model.safetensors"))
        found = names(made.root / f"models/fishers/{name}/fisher.safetensors")
        assert found == {f"model.layers.{i}.self_attn.{part}_proj.weight" for i in (0, 1) for part in "qv"}
        assert names(made.root / f"models/gram/{name}/gram.safetensors") == {f"input.{tensor}" for tensor in found}
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "inputs/base")
    for name in methods:
        model = AutoModelForCausalLM.from_pretrained(made.root / "models/merged" / name)
        assert not torch.equal(model.get_parameter(weight), base.get_parameter(weight))
        assert torch.equal(model.model.norm.weight, base.model.norm.weight)
        assert not (made.root / "models/merged" / name / "adapter_config.json").exists()
    adapted = peft.PeftModel.from_pretrained(base, str(made.root / "models/merged/fisher-low"))
    assert adapted.generate(input_ids=torch.tensor([[7, 8]]), min_new_tokens=2, max_new_tokens=2).shape == (1, 4)
    origin = read(made, "models/merged/fisher-low/checkpoint.json")["origin"]
    assert origin["adapter"]["rank"] == 6
    assert 0 < origin["adapter"]["relative_error"] < 1
    scores = {result["name"]: result["metrics"] for result in read(made, "results/scores/scores.json")["results"]}
    assert scores.keys() == {"ann", "bob", *methods, *low, *sought}
    assert made.repro() == []
    made.edit_params(lambda params: params["merges"]["fisher"]["coefficients"].update(ann=3))
    assert made.repro() == ["settings", "merge-fisher", "evaluate-fisher", "scores", "report"]


def test_ia3_vectors_and_a_finished_adapter(tmp_path: Path) -> None:
    """(IA)³ vectors are measured and merged as such; an adapter that somebody has trained is a model."""
    ia3 = {"type": "ia3", "targets": ["k_proj", "v_proj", "down_proj"], "feedforward": ["down_proj"]}
    merges = {
        "average": {"method": "isotropic"},
        "fisher": {"method": "fisher"},
        "tasks": {"method": "task_arithmetic"},
    }
    made = project(tmp_path, {"ann": ia3, "bob": ia3}, merges)
    made.run("python", "-m", "stages.plan")
    made.repro()
    vectors = names(made.root / "models/finetuned/ann/adapter_model.safetensors")
    assert names(made.root / "models/fishers/ann/fisher.safetensors") == vectors
    for name in merges:
        assert names(made.root / f"models/merged/{name}/adapter_model.safetensors") == vectors
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "inputs/base")
    adapted = peft.PeftModel.from_pretrained(base, str(made.root / "models/merged/fisher"))
    assert adapted.generate(input_ids=torch.tensor([[7, 8]]), min_new_tokens=2, max_new_tokens=2).shape == (1, 4)
    theirs = tmp_path / "inputs/theirs"
    (made.root / "models/finetuned/bob").rename(theirs)
    (theirs / "checkpoint.json").unlink()
    (theirs / "contents.json").unlink()
    (theirs / "config.json").unlink()

    def bring_in(params: dict[str, Any]) -> None:
        params["sources"]["theirs"] = {"path": str(theirs), "sha256": tree_sha256(theirs)}
        params["models"]["bob"] = {"base": "base", "adapter": "theirs", "task": "bob"}

    before = read(made, "results/eval/fisher/metrics.json")
    made.edit_params(bring_in)
    made.run("python", "-m", "stages.plan")
    made.repro()
    assert read(made, "models/finetuned/bob/checkpoint.json")["origin"]["method"] == "brought in"
    assert read(made, "results/eval/fisher/metrics.json") == before
