"""A Fisher in memory becomes a directory that merges take: of the file's names, as a float64 reference has it."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from stages.curvature import TokenCategorical, diagonal_fisher
from stages.merging import Fisher, merge_checkpoints, save_fisher
from stages.merging.card import model_card
from stages.running.errors import InputError
from stages.storage.cards import read_json
from tests.merging.test_spelling import ELSEWHERE, GPT2, TEXT, TIED, assert_same, old_norms, small, twice
from tests.tiny import tiny_bert

Make = Callable[[int], PreTrainedModel]

MOE: dict[str, Any] = TEXT | {"num_key_value_heads": 2, "num_hidden_layers": 2}
QWEN: dict[str, Any] = MOE | {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
QWEN |= {"shared_expert_intermediate_size": 8}

MODELS: dict[str, Make] = {
    "Mixtral": small("MixtralForCausalLM", **MOE, num_local_experts=3),
    "Qwen2-MoE": small("Qwen2MoeForCausalLM", **QWEN),
    "Qwen3-MoE": small("Qwen3MoeForCausalLM", **QWEN, head_dim=8),
    "OLMoE": small("OlmoeForCausalLM", **MOE, num_experts=3, num_experts_per_tok=2),
    "GPT-NeoX": small("GPTNeoXForCausalLM", **TEXT),
    "Llama, tied": small("LlamaForCausalLM", **TEXT, tie_word_embeddings=True),
    "GPT-2": small("GPT2LMHeadModel", **GPT2),
    "BERT": small("BertForMaskedLM", **TEXT),
    "ViT": ELSEWHERE["ViT as it is in memory"][0],
}


def random_fisher(model: PreTrainedModel, seed: int) -> dict[str, Tensor]:
    """Of the parameters in memory, each once: five orders of magnitude."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: 10 ** (-5 * torch.rand(parameter.shape, generator=generator))
        for name, parameter in model.named_parameters()
    }


def reference(
    models: Mapping[str, PreTrainedModel], fishers: Mapping[str, Mapping[str, Tensor]], λ: Mapping[str, float]
) -> dict[str, Tensor]:
    """Matena & Raffel's equation 5 in float64, on the parameters in memory, with normalised Fishers and no floor."""
    weights = {
        name: λ[name] / sum(float(value.double().square().sum()) for value in fishers[name].values()) ** 0.5
        for name in models
    }
    merged = {}
    for key in next(iter(fishers.values())):
        parts = [
            (weights[name] * fishers[name][key].double(), model.get_parameter(key).detach().double())
            for name, model in models.items()
        ]
        merged[key] = sum(weight * value for weight, value in parts) / sum(weight for weight, _ in parts)
    return merged


@pytest.mark.parametrize("architecture", MODELS)
def test_a_merge_of_saved_fishers_is_that_of_the_models_in_memory(tmp_path: Path, architecture: str) -> None:
    models, fishers, checkpoints, statistics = {}, {}, {}, {}
    λ = {"ann": 0.3, "bob": 0.7}
    for seed, name in enumerate(λ):
        model = MODELS[architecture](seed)
        models[name], fishers[name] = model, random_fisher(model, seed)
        model.save_pretrained(tmp_path / name)
        save_fisher(fishers[name], tmp_path / name, tmp_path / f"{name}-fisher")
        checkpoints[name], statistics[name] = tmp_path / name, tmp_path / f"{name}-fisher"
    wanted = reference(models, fishers, λ)
    method = Fisher(floor=0.0)
    merge_checkpoints(checkpoints, tmp_path / "out", method=method, coefficients=λ, statistics=statistics)
    found = type(models["ann"]).from_pretrained(tmp_path / "out")
    for name, parameter in found.named_parameters():
        torch.testing.assert_close(parameter.double(), wanted[name], rtol=1e-5, atol=1e-7)
    assert {name for name, _ in found.named_parameters()} == wanted.keys()


@pytest.mark.parametrize("architecture", ["Mixtral", "Qwen2-MoE", "GPT-NeoX"])
def test_a_fisher_that_has_been_estimated(tmp_path: Path, architecture: str) -> None:
    """The library's two calls after each other; files may hold what transformers leaves out."""
    checkpoints, statistics = {}, {}
    generator = torch.Generator().manual_seed(0)
    for seed, name in enumerate(("ann", "bob")):
        model = MODELS[architecture](seed)
        model.save_pretrained(tmp_path / name)
        batches = [{"input_ids": torch.randint(3, 20, (2, 6), generator=generator)}]
        fisher = diagonal_fisher(
            model, batches, likelihood=TokenCategorical(shift=True), estimator="sampled", progress=False
        )
        save_fisher(fisher, str(tmp_path / name), str(tmp_path / f"{name}-fisher"))
        total = sum(float(value.double().sum()) for value in fisher.values())
        saved = load_file(tmp_path / f"{name}-fisher/fisher.safetensors")
        assert sum(float(value.double().sum()) for value in saved.values()) == pytest.approx(total, rel=1e-5)
        assert saved.keys() == load_file(tmp_path / name / "model.safetensors").keys()
        checkpoints[name], statistics[name] = tmp_path / name, tmp_path / f"{name}-fisher"
    λ = {"ann": 0.5, "bob": 0.5}
    merge_checkpoints(checkpoints, tmp_path / "out", method="fisher", coefficients=λ, statistics=statistics)


@pytest.mark.parametrize("architecture", TIED)
def test_tied_parameters_of_files_that_hold_them_twice(tmp_path: Path, architecture: str) -> None:
    make, copies = TIED[architecture]
    λ = {"ann": 0.5, "bob": 0.5}
    found = {}
    for spelling in (dict, twice(copies)):
        for seed, name in enumerate(λ):
            model = make(seed)
            model.save_pretrained(tmp_path / name)
            file = tmp_path / name / "model.safetensors"
            save_file({k: v.clone() for k, v in spelling(load_file(file)).items()}, file, metadata={"format": "pt"})
            save_fisher(random_fisher(model, seed), tmp_path / name, tmp_path / f"{name}-fisher")
        merge_checkpoints(
            {name: tmp_path / name for name in λ},
            tmp_path / "out",
            coefficients=λ,
            statistics={name: tmp_path / f"{name}-fisher" for name in λ},
        )
        found[spelling] = load_file(tmp_path / "out/model.safetensors")
    once, both = found.values()
    assert_same({name: both[name] for name in once}, once)


def test_names_of_old_files(tmp_path: Path) -> None:
    model = tiny_bert()
    model.save_pretrained(tmp_path / "ann")
    file = tmp_path / "ann/model.safetensors"
    spelled = {old_norms(name.removeprefix("bert.")): value for name, value in load_file(file).items()}
    save_file(spelled, file, metadata={"format": "pt"})
    fisher = random_fisher(model, 0)
    save_fisher(fisher, tmp_path / "ann", tmp_path / "fisher")
    assert_same(
        load_file(tmp_path / "fisher/fisher.safetensors"),
        {old_norms(name.removeprefix("bert.")): value for name, value in fisher.items()},
    )
    assert read_json(tmp_path / "fisher/fisher.json")["libraries"]["transformers"] == transformers.__version__


@pytest.fixture
def saved(tmp_path: Path) -> dict[str, Tensor]:
    model = tiny_bert()
    model.save_pretrained(tmp_path / "ann")
    return random_fisher(model, 0)


def test_what_cannot_be_saved_is_refused(tmp_path: Path, saved: dict[str, Tensor]) -> None:
    name = "bert.pooler.dense.weight"
    for fisher, message in (
        ({f"base_model.model.{name}": saved[name]}, "of a PEFT model, which no merge takes"),
        ({"bert.other.weight": saved[name]}, r"the model's parameter bert\.other\.weight is not in its file"),
        ({name: -saved[name]}, "has a negative entry"),
        ({name: saved[name] * float("nan")}, "is not finite"),
        ({name: saved[name][:3]}, r"has the shape \[16, 16\], but the fisher \[3, 16\]"),
    ):
        with pytest.raises(InputError, match=message):
            save_fisher(fisher, tmp_path / "ann", tmp_path / "fisher")
        assert not (tmp_path / "fisher").exists()


def test_a_fisher_is_replaced_and_nothing_else(tmp_path: Path, saved: dict[str, Tensor]) -> None:
    out = tmp_path / "fisher"
    save_fisher(saved, tmp_path / "ann", out)
    save_fisher(saved, tmp_path / "ann", out)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"fisher: holds notes\.txt, which would be lost"):
        save_fisher(saved, tmp_path / "ann", out)
    for place in (tmp_path, tmp_path / "ann", tmp_path / "ann/fisher"):
        with pytest.raises(InputError, match=r"is, holds or lies in the input .*ann; name a directory apart from it"):
            save_fisher(saved, tmp_path / "ann", place)
    assert (out / "notes.txt").read_text() == "mine"


def test_a_conversion_that_computes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if transformers did arithmetic where it only moves entries: a Fisher could not follow."""
    model = MODELS["Mixtral"](0)
    model.save_pretrained(tmp_path / "ann")
    monkeypatch.setattr("stages.storage.naming._PERMUTATIONS", {"MergeModulelist"})
    with pytest.raises(InputError, match=r"computes with the tensor .*experts.* when it loads it \(Concatenate\)"):
        save_fisher(random_fisher(model, 0), tmp_path / "ann", tmp_path / "fisher")


def test_the_card_says_what_each_model_scored_and_by_which_metric() -> None:
    scored: dict[str, dict[str, object]] = {
        "ann": {"examples": 10, "validation_accuracy": 0.9125},
        "bob": {"examples": 20, "validation_macro_f1": 0.5},
        "cid": {"method": "brought in"},
    }
    origin = {
        "method": "isotropic",
        "options": {},
        "precision": "float32",
        "target": "ann",
        "heads": "merge",
        "coefficients": dict.fromkeys(scored, 1 / 3),
        "models": {name: {"task": "books", "checkpoint": 64 * "0"} for name in scored},
    }
    text = model_card({"origin": origin, "labels": ["bad", "good"], "fingerprint": "f"}, scored)
    assert "| model | λ | task | examples | validation | weights |" in text
    assert "| ann | 0.3333 | books | 10 | accuracy 0.9125 |" in text
    assert "| bob | 0.3333 | books | 20 | macro f1 0.5 |" in text
    assert "| cid | 0.3333 | books | – | – |" in text
