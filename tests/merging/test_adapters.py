"""Merges of adapters: as whole models against NumPy and against the same merge of whole models, and as adapters."""

import json
import re
import shutil
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import peft
import pytest
import torch
from peft import IA3Config, LoraConfig
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from stages.merging import merge_checkpoints
from stages.merging.methods import METHODS
from stages.running.errors import InputError
from stages.storage.adapted import OwnFiles
from stages.storage.statistics import write_statistic
from stages.storage.tensors import TensorFiles
from stages.storage.weights import open_weights
from stages.tasks.loading import load_pretrained
from tests.adapters import (
    Arrays,
    adapter_tensors,
    base_arrays,
    change_config,
    change_tensors,
    config_of,
    ia3_reference,
    logits,
    lora_reference,
    names_in,
    write_adapter,
)
from tests.language import save, tiny_gpt2, tiny_llama
from tests.merging.models import gram
from tests.tiny import WORDS, tiny_bert, tiny_tokenizer

Λ = {"ann": 1.0, "bob": 3.0}
SHARES = {"ann": 0.25, "bob": 0.75}
LM: Any = AutoModelForCausalLM
Q = "model.layers.0.self_attn.q_proj.weight"
CONFIGS: dict[str, dict[str, Any]] = {
    "ann": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]},
    "bob": {"r": 16, "lora_alpha": 8, "use_rslora": True, "target_modules": ["q_proj", "o_proj", "down_proj"]},
}
Statistics = dict[str, dict[str, torch.Tensor]]


class Shop:
    """Two LoRA adapters of ranks 4 and 16 and other targets, on one base; the same two as whole models in float64."""

    def __init__(self, root: Path) -> None:
        self.root = root
        save(tiny_llama(0, tied=True), root / "base")
        self.base = base_arrays(root / "base")
        self.weights: dict[str, Arrays] = {}
        for seed, (name, config) in enumerate(CONFIGS.items()):
            write_adapter(LM, root / "base", LoraConfig(**config), root / name, seed=seed)
            self.weights[name] = lora_reference(root / "base", root / name)
            self.save_whole(name, self.weights[name])
        self.save_whole("base", self.base)
        self.changed = sorted(
            name for name in self.base if any((own[name] != self.base[name]).any() for own in self.weights.values())
        )
        self.adapters = {name: root / name for name in CONFIGS}
        self.wholes = {name: root / "whole" / name for name in CONFIGS}
        self.statistics = {name: self.write_statistics(name) for name in CONFIGS}

    def save_whole(self, name: str, weights: Arrays) -> None:
        model = tiny_llama(0, tied=True).double()
        model.load_state_dict({own: torch.tensor(values) for own, values in weights.items()}, strict=False)
        save(model, self.root / "whole" / name)

    def write_statistics(self, name: str) -> Statistics:
        """Random ones of the changed weights, in `stats`; a whole model's have zeros for the others."""
        generator = torch.Generator().manual_seed(len(self.weights[name]) + ord(name[0]))
        shapes = {own: self.base[own].shape for own in self.changed}
        fisher = {own: torch.rand(shape, generator=generator).square() for own, shape in shapes.items()}
        inputs = {f"input.{own}": gram(torch.randn(40, shape[1], generator=generator)) for own, shape in shapes.items()}
        outputs = {
            f"output.{own}": gram(torch.randn(40, shape[0], generator=generator)) for own, shape in shapes.items()
        }
        every = {own: fisher.get(own, torch.zeros(values.shape)) for own, values in self.base.items()}
        for kind, directory, diagonal in (("adapters", self.root, fisher), ("wholes", self.root / "whole", every)):
            out = self.root / "stats" / kind / name
            out.mkdir(parents=True)
            files = open_weights(directory / name)
            write_statistic(out, "diagonal", diagonal, files, {})
            write_statistic(out, "gram", inputs, files, {"transposed": []})
            write_statistic(out, "kfac", inputs | outputs, files, {"transposed": []})
        return {"fisher": fisher, "gram": {own: inputs[f"input.{own}"] for own in self.changed}}

    def merge(self, out: Path, kind: str = "adapters", **how: Any) -> dict[str, torch.Tensor]:
        base = self.root / "base" if kind == "adapters" else self.root / "whole/base"
        statistics = {name: self.root / "stats" / kind / name for name in CONFIGS}
        given: dict[str, Any] = {
            "coefficients": Λ,
            "base": base,
            "statistics": statistics,
            "precision": "float64",
        } | how
        merge_checkpoints(self.adapters if kind == "adapters" else self.wholes, out, **given)
        return load_file(out / "model.safetensors") if (out / "model.safetensors").exists() else {}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return Shop(tmp_path_factory.mktemp("shop"))


def isotropic(shop: Shop, name: str) -> np.ndarray:
    return np.sum([share * shop.weights[model][name] for model, share in SHARES.items()], axis=0)


def fisher(shop: Shop, name: str) -> np.ndarray:
    """Each model's Fisher over its norm of all its tensors together."""
    weighted = {}
    for model, share in SHARES.items():
        own = {key: values.double().numpy() for key, values in shop.statistics[model]["fisher"].items()}
        norm = np.sqrt(sum((values**2).sum() for values in own.values()))
        weighted[model] = share * np.maximum(own[name], 1e-30) / norm
    return sum(weighted[model] * shop.weights[model][name] for model in SHARES) / sum(weighted.values())


def task_arithmetic(shop: Shop, name: str) -> np.ndarray:
    base = shop.base[name]
    return base + 0.7 * sum(share * (shop.weights[model][name] - base) for model, share in SHARES.items())


def ties(shop: Shop, name: str) -> np.ndarray:
    """Of density 0.4: the largest 40 % of each task vector; the elected sign; the mean over those who have it."""
    base, kept = shop.base[name], {}
    for model in SHARES:
        vector = shop.weights[model][name] - base
        order = np.sort(np.abs(vector).ravel())[::-1]
        count = int(0.4 * vector.size)
        kept[model] = np.where(np.abs(vector) >= order[max(count, 1) - 1], vector, 0)
    sign = np.where(sum(SHARES[model] * vector for model, vector in kept.items()) >= 0, 1, -1)
    total, over = np.zeros_like(base), np.zeros_like(base)
    for model, vector in kept.items():
        agrees = vector * sign > 0
        total += SHARES[model] * np.where(agrees, vector, 0)
        over += SHARES[model] * agrees
    return base + np.divide(total, over, out=np.zeros_like(total), where=over > 0)


def regmean(shop: Shop, name: str) -> np.ndarray:
    left: Any = 0.0
    right: Any = 0.0
    for model, share in SHARES.items():
        matrix = shop.statistics[model]["gram"][name].double().numpy()
        matrix = 0.9 * matrix + 0.1 * np.diag(np.diag(matrix))
        left, right = left + share * matrix, right + share * matrix @ shop.weights[model][name].T
    return np.asarray(np.linalg.solve(left, right).T)


def uncertainty(shop: Shop, name: str) -> np.ndarray:
    base, delta = shop.base[name], 1e-3
    own = {model: shop.statistics[model]["fisher"][name].double().numpy() for model in SHARES}
    total = delta + sum(share * own[model] for model, share in SHARES.items())
    return base + sum(
        share * (delta + own[model]) / total * (shop.weights[model][name] - base) for model, share in SHARES.items()
    )


REFERENCES: dict[str, tuple[Callable[[Shop, str], np.ndarray], dict[str, Any]]] = {
    "isotropic": (isotropic, {"method": "isotropic"}),
    "fisher": (fisher, {"method": "fisher"}),
    "task_arithmetic": (task_arithmetic, {"method": "task_arithmetic", "scale": 0.7}),
    "ties": (ties, {"method": "ties", "density": 0.4}),
    "regmean": (regmean, {"method": "regmean", "alpha": 0.9}),
    "uncertainty": (uncertainty, {"method": "uncertainty", "delta": 1e-3}),
}
EVERY = {name: options for name, (_, options) in REFERENCES.items()} | {
    "dare": {"method": "dare"},
    "slerp": {"method": "slerp"},
    "kfac": {"method": "kfac"},
}


def options_of(given: dict[str, Any]) -> Any:
    return METHODS[given["method"]](**{key: value for key, value in given.items() if key != "method"})


def test_all_methods_are_here() -> None:
    assert EVERY.keys() == METHODS.keys()


@pytest.mark.parametrize("method", EVERY)
def test_a_merge_of_adapters_is_that_of_their_whole_models(shop: Shop, tmp_path: Path, method: str) -> None:
    options = options_of(EVERY[method])
    found = shop.merge(tmp_path / "out", method=options)
    whole = shop.merge(tmp_path / "whole", "wholes", method=options)
    untouched = load_file(shop.root / "base/model.safetensors")
    assert found.keys() == whole.keys() == untouched.keys()
    assert {name for name in found if not torch.equal(found[name], untouched[name])} == set(shop.changed)
    for name in shop.changed:
        torch.testing.assert_close(found[name].double(), whole[name], rtol=2e-6, atol=2e-6)
        if method in REFERENCES:
            expected = REFERENCES[method][0](shop, name)
            np.testing.assert_allclose(found[name].double().numpy(), expected, rtol=2e-6, atol=2e-6)
    model: Any = LM.from_pretrained(tmp_path / "out")
    assert model.generate(torch.tensor([[7, 8]]), min_new_tokens=2, max_new_tokens=2).shape == (1, 4)


def test_factors_are_never_averaged_apart(shop: Shop, tmp_path: Path) -> None:
    """The mean of the products is not the product of the means."""
    found = shop.merge(tmp_path / "out", method="isotropic")
    one, other = (adapter_tensors(shop.root / name) for name in CONFIGS)
    key = "base_model.model." + Q.removesuffix("weight") + "lora_{}.weight"
    a, b = ((0.25 * one[key.format(c)].norm() + 0.75 * other[key.format(c)].norm()) for c in "AB")
    assert a > 0
    assert b > 0
    change = found[Q].double().numpy() - shop.base[Q]
    np.testing.assert_allclose(change, isotropic(shop, Q) - shop.base[Q], atol=1e-6)
    assert np.linalg.matrix_rank(change, tol=1e-4) > 4


@pytest.mark.parametrize("sole", CONFIGS)
@pytest.mark.parametrize("method", ["isotropic", "fisher", "ties"])
def test_a_sole_model_is_itself(shop: Shop, tmp_path: Path, sole: str, method: str) -> None:
    found = shop.merge(tmp_path / "out", method=method, coefficients={name: float(name == sole) for name in CONFIGS})
    for name, values in shop.weights[sole].items():
        np.testing.assert_allclose(found[name].double().numpy(), values, rtol=3e-6, atol=3e-6)


def test_the_order_and_the_place_of_the_base_do_not_matter(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The base by another path is the adapters' base: what they leave alone is not merged, and needs no Fisher."""
    first = shop.merge(tmp_path / "one", method="uncertainty")
    monkeypatch.chdir(shop.root)
    again = shop.merge(tmp_path / "two", method="uncertainty", base=Path("base"))
    assert all(torch.equal(first[name], again[name]) for name in first)
    save(tiny_llama(0, tied=True), tmp_path / "copy")
    copied = shop.merge(tmp_path / "three", method="uncertainty", base=tmp_path / "copy")
    assert all(torch.equal(first[name], copied[name]) for name in first)


def change_of(shop: Shop, name: str) -> np.ndarray:
    return isotropic(shop, name) - shop.base[name]


@pytest.mark.parametrize("rank", [1, 6, 16, 99])
def test_an_adapter_is_the_best_of_its_rank(shop: Shop, tmp_path: Path, rank: int) -> None:
    shop.merge(tmp_path / "out", method="isotropic", rank=rank)
    assert names_in(tmp_path / "out/adapter_model.safetensors")
    assert not list((tmp_path / "out").glob("model*.safetensors"))
    card = json.loads((tmp_path / "out/checkpoint.json").read_text())["origin"]["adapter"]
    own = {name: values.double().numpy() for name, values in adapter_tensors(tmp_path / "out").items()}
    squares = lost = 0.0
    for name in shop.changed:
        path = "base_model.model." + name.removesuffix(".weight")
        product = own[f"{path}.lora_B.weight"] @ own[f"{path}.lora_A.weight"]
        change = change_of(shop, name)
        u, values, v = np.linalg.svd(change, full_matrices=False)
        best = u[:, :rank] * values[:rank] @ v[:rank]
        np.testing.assert_allclose(product, best, atol=3e-6)
        error = np.linalg.norm(values[rank:]) / np.linalg.norm(values)
        assert card["relative_errors"][name] == pytest.approx(error, abs=1e-6)
        assert np.linalg.norm(change - product) / np.linalg.norm(change) == pytest.approx(error, abs=1e-6)
        squares, lost = squares + (values**2).sum(), lost + (values[rank:] ** 2).sum()
    assert card["relative_error"] == pytest.approx(np.sqrt(lost / squares), abs=1e-6)
    assert card["rank"] == rank
    assert f"rank {rank}" in (tmp_path / "out/README.md").read_text()
    adapted = peft.PeftModel.from_pretrained(LM.from_pretrained(shop.root / "base"), tmp_path / "out")
    assert adapted.generate(input_ids=torch.tensor([[7, 8]]), min_new_tokens=2, max_new_tokens=2).shape == (1, 4)
    ours = load_pretrained(LM, "a model", tmp_path / "out", {}, headless=False, poolerless=False)
    torch.testing.assert_close(logits(ours), logits(adapted), rtol=1e-4, atol=1e-5)
    if rank >= 16:
        shop.merge(tmp_path / "whole", method="isotropic")
        torch.testing.assert_close(logits(adapted), logits(LM.from_pretrained(tmp_path / "whole")), rtol=0, atol=3e-5)


def test_an_adapter_that_does_not_name_its_base(shop: Shop, tmp_path: Path) -> None:
    """The result names the base that was given."""
    for name in CONFIGS:
        shutil.copytree(shop.root / name, tmp_path / name)
        config = config_of(tmp_path / name)
        del config["base_model_name_or_path"]
        (tmp_path / name / "adapter_config.json").write_text(json.dumps(config))
    directories = {name: tmp_path / name for name in CONFIGS}
    base = shop.root / "base"
    merge_checkpoints(directories, tmp_path / "out", method="isotropic", coefficients=Λ, base=base, rank=16)
    found = open_weights(tmp_path / "out")
    np.testing.assert_allclose(found.read(Q).double().numpy(), isotropic(shop, Q), rtol=1e-5, atol=3e-6)


def test_an_adapter_of_a_merge_from_another_base_is_refused(shop: Shop, tmp_path: Path) -> None:
    """It would have to change all weights, and not only those that the adapters change."""
    save(tiny_llama(5, tied=True), tmp_path / "other")
    method = METHODS["task_arithmetic"](scale=0.5)  # type: ignore[call-arg]
    refused(
        r"other: has other weights than the adapters' base .*, so the merge changes model\.embed_tokens\.weight too",
        lambda: shop.merge(tmp_path / "out", method=method, base=tmp_path / "other", rank=4),
    )
    save(tiny_llama(0, tied=True), tmp_path / "same")
    shop.merge(tmp_path / "out", method=method, base=tmp_path / "same", rank=16)


def test_rank_zero_is_refused(shop: Shop, tmp_path: Path) -> None:
    refused(
        "rank = 0: an adapter's rank must be positive", lambda: shop.merge(tmp_path / "out", method="isotropic", rank=0)
    )
    assert not (tmp_path / "out").exists()


def refused(message: str, what: Callable[[], object]) -> None:
    with pytest.raises(InputError) as error:
        what()
    assert re.search(message, str(error.value)), str(error.value)
    assert "\n" not in str(error.value)


PAIRS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "embeddings": ("tied", {"target_modules": ["q_proj", "embed_tokens"]}, {"target_modules": ["embed_tokens"]}),
    "embeddings of one": ("tied", {"target_modules": ["q_proj"]}, {"target_modules": ["q_proj", "embed_tokens"]}),
    "head of one": ("tied", {"target_modules": ["q_proj", "lm_head"]}, {"target_modules": ["v_proj"]}),
    "tied and not": (
        "tied",
        {"target_modules": ["embed_tokens"], "ensure_weight_tying": True},
        {"target_modules": ["q_proj", "lm_head"]},
    ),
    "tied": (
        "tied",
        {"target_modules": ["embed_tokens"], "ensure_weight_tying": True},
        {"target_modules": ["q_proj"], "trainable_token_indices": [4, 9]},
    ),
    "saved, tied": (
        "tied",
        {"target_modules": ["q_proj"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    ),
    "saved head": (
        "tied",
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj"]},
    ),
    "saved by the other": (
        "untied",
        {"target_modules": ["q_proj"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "input_layernorm"]},
    ),
    "Conv1D": ("gpt2", {"target_modules": ["c_attn"]}, {"target_modules": ["c_attn", "c_proj"], "use_dora": True}),
}


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("rank", [None, 16])
def test_other_targets_merge_into_the_mean_of_the_models(tmp_path: Path, pair: str, rank: int | None) -> None:
    """Of the unmerged models' own weights, tied or not; a full rank loses nothing."""
    base, *settings = PAIRS[pair]
    save(tiny_gpt2(0) if base == "gpt2" else tiny_llama(0, tied=base == "tied"), tmp_path / "base")
    models = {}
    for seed, (name, own) in enumerate(zip(CONFIGS, settings, strict=True)):
        config = LoraConfig(**({"r": 4 + 12 * seed, "fan_in_fan_out": base == "gpt2"} | deepcopy(own)))
        unmerged = write_adapter(LM, tmp_path / "base", config, tmp_path / name, seed=seed, noise=0.1)
        models[name] = load_pretrained(LM, "a model", tmp_path / name, {}, headless=False, poolerless=False)
        torch.testing.assert_close(logits(models[name]), logits(unmerged), rtol=1e-4, atol=1e-4)
    merge_checkpoints(
        {name: tmp_path / name for name in CONFIGS}, tmp_path / "out", method="isotropic", coefficients=Λ, rank=rank
    )
    expected = LM.from_pretrained(tmp_path / "base", tie_word_embeddings=False)
    with torch.no_grad():
        states = {name: model.state_dict() for name, model in models.items()}
        for key, tensor in expected.state_dict().items():
            tensor.copy_(sum(share * states[name][key].double() for name, share in SHARES.items()))
    found: Any
    if rank is None:
        found = LM.from_pretrained(tmp_path / "out")
    else:
        found = peft.PeftModel.from_pretrained(LM.from_pretrained(tmp_path / "base"), tmp_path / "out")
        ours = load_pretrained(LM, "a model", tmp_path / "out", {}, headless=False, poolerless=False)
        torch.testing.assert_close(logits(ours), logits(expected), rtol=1e-4, atol=1e-4)
        saved = set(config_of(tmp_path / "out")["modules_to_save"] or [])
        assert {module.rpartition(".")[2] for module in saved} == {
            module for own in settings for module in own.get("modules_to_save", [])
        }
    torch.testing.assert_close(logits(found), logits(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("configured", [False, True])
@pytest.mark.parametrize("target", CONFIGS)
def test_task_vectors_of_heads_that_an_adapter_unties(tmp_path: Path, target: str, configured: bool) -> None:
    """They start from the tied embeddings, whether the adapter's own config.json says that they are two or not."""
    save(tiny_llama(0, tied=True), tmp_path / "base")
    states = {}
    for seed, (name, own) in enumerate(zip(CONFIGS, PAIRS["head of one"][1:], strict=True)):
        write_adapter(LM, tmp_path / "base", LoraConfig(**deepcopy(own)), tmp_path / name, seed=seed)
        model = load_pretrained(LM, "a model", tmp_path / name, {}, headless=False, poolerless=False)
        states[name] = {key: tensor.double().numpy() for key, tensor in model.state_dict().items()}
        if configured:
            config = json.loads((tmp_path / "base/config.json").read_text())
            text = json.dumps(config | {"tie_word_embeddings": name != "ann"})
            (tmp_path / name / "config.json").write_text(text)
    merge_checkpoints(
        {name: tmp_path / name for name in sorted(CONFIGS, key=lambda name: name != target)},
        tmp_path / "out",
        method=METHODS["task_arithmetic"](scale=0.7),  # type: ignore[call-arg]
        coefficients=Λ,
        base=tmp_path / "base",
    )
    base = base_arrays(tmp_path / "base")
    found = load_file(tmp_path / "out/model.safetensors")
    assert found.keys() == base.keys() | {"lm_head.weight"}
    for name, tensor in found.items():
        start = base["model.embed_tokens.weight" if name == "lm_head.weight" else name]
        expected = start + 0.7 * sum(share * (states[model][name] - start) for model, share in SHARES.items())
        np.testing.assert_allclose(tensor.double().numpy(), expected, rtol=2e-6, atol=2e-6, err_msg=name)
    assert json.loads((tmp_path / "out/config.json").read_text())["tie_word_embeddings"] is False


def test_a_base_whose_configuration_is_spelled_otherwise(tmp_path: Path) -> None:
    """An adapter from elsewhere has its base's config.json, which another version of transformers may have written."""
    save(tiny_llama(0, tied=True), tmp_path / "base")
    save(tiny_llama(3, tied=True), tmp_path / "whole")
    write_adapter(LM, tmp_path / "base", LoraConfig(**CONFIGS["ann"]), tmp_path / "lora")
    file = tmp_path / "base/config.json"
    config = json.loads(file.read_text())
    θ = config.pop("rope_parameters")["rope_theta"]
    file.write_text(json.dumps(config | {"rope_theta": θ}))
    directories = {name: tmp_path / name for name in ("lora", "whole")}
    one = dict.fromkeys(directories, 1)
    merge_checkpoints(directories, tmp_path / "out", method="isotropic", coefficients=one)
    mean = (lora_reference(tmp_path / "base", tmp_path / "lora")[Q] + base_arrays(tmp_path / "whole")[Q]) / 2
    found = load_file(tmp_path / "out/model.safetensors")[Q]
    np.testing.assert_allclose(found.double().numpy(), mean, rtol=1e-6, atol=1e-6)
    file.write_text(json.dumps(config | {"rope_theta": 2 * θ}))
    refused(
        r"whole.config\.json: rope_parameters is .* in .*base.config\.json",
        lambda: merge_checkpoints(directories, tmp_path / "out", method="isotropic", coefficients=one),
    )


def test_an_adapter_without_a_tokenizer_has_its_bases_vocabulary(tmp_path: Path) -> None:
    save(tiny_bert(), tmp_path / "base", tiny_tokenizer())
    save(tiny_bert(), tmp_path / "whole", tiny_tokenizer(list(reversed(WORDS))))
    config = LoraConfig(r=4, target_modules=["query"])
    write_adapter(AutoModelForSequenceClassification, tmp_path / "base", config, tmp_path / "lora")
    for models in (("lora", "whole"), ("whole", "lora")):

        def merge(names: tuple[str, ...] = models) -> None:
            directories = {name: tmp_path / name for name in names}
            one = dict.fromkeys(directories, 1)
            merge_checkpoints(directories, tmp_path / "out", method="isotropic", coefficients=one)

        refused("has another vocabulary than .*; merged row by row, the same row would mean different words", merge)
        own = tmp_path / "lora/tokenizer.json"
        shutil.copy(tmp_path / "whole/tokenizer.json", own)
        merge()
        own.unlink()
    more = tiny_tokenizer()
    more.add_tokens(["<x>"])  # to the adapter's base too, maybe, or to none
    more.save_pretrained(tmp_path / "whole")
    merge()


def test_an_adapter_of_low_rank_has_no_nan(tmp_path: Path) -> None:
    """A module that is saved whole is no change that is decomposed, and would be written as it is."""
    save(tiny_bert(), tmp_path / "base", tiny_tokenizer())
    for seed, name in enumerate(CONFIGS):
        config = LoraConfig(r=4, target_modules=["query"], modules_to_save=["classifier"])
        write_adapter(AutoModelForSequenceClassification, tmp_path / "base", config, tmp_path / name, seed=seed)
    change_tensors(tmp_path / "bob", lambda own: own["base_model.model.classifier.bias"].fill_(torch.nan))
    directories = {name: tmp_path / name for name in CONFIGS}
    for rank in (None, 4):
        for λ in (Λ, {"ann": 0.0, "bob": 1.0}):
            refused(
                r"bob.adapter_model\.safetensors: tensor classifier\.bias has a NaN entry",
                lambda rank=rank, λ=λ: merge_checkpoints(  # type: ignore[misc]
                    directories, tmp_path / "out", method="isotropic", coefficients=λ, rank=rank
                ),
            )


def test_a_bfloat16_base(tmp_path: Path) -> None:
    """What is written has the base's type, rounded once from float32; what no adapter changes is the base's bits."""
    save(tiny_llama(0, tied=True).bfloat16(), tmp_path / "base")
    for seed, (name, config) in enumerate(CONFIGS.items()):
        write_adapter(LM, tmp_path / "base", LoraConfig(**config), tmp_path / name, seed=seed)
    references = {name: lora_reference(tmp_path / "base", tmp_path / name) for name in CONFIGS}
    base = load_file(tmp_path / "base/model.safetensors")
    directories = {name: tmp_path / name for name in CONFIGS}
    for λ in (Λ, {"ann": 1.0, "bob": 0.0}):
        merge_checkpoints(directories, tmp_path / "out", method="isotropic", coefficients=λ)
        found = load_file(tmp_path / "out/model.safetensors")
        for name, values in found.items():
            total = sum(λ.values())
            expected = torch.tensor(sum(λ[model] / total * references[model][name] for model in CONFIGS))
            assert values.dtype == torch.bfloat16
            off = (values.float() - expected.float().bfloat16().float()).abs()
            assert (off <= 0.008 * expected.abs()).all()  # one unit in the last place, and that seldom
            assert (off > 0).float().mean() < 0.01
            if all((references[model][name] == base[name].double().numpy()).all() for model in CONFIGS):
                assert torch.equal(values, base[name])


IA3: dict[str, Any] = {"target_modules": ["k_proj", "v_proj", "down_proj"], "feedforward_modules": ["down_proj"]}


def vectors(root: Path) -> dict[str, Arrays]:
    """Two (IA)³ adapters with Fishers; their vectors."""
    save(tiny_llama(0, tied=True), root / "base")
    found = {}
    for seed, name in enumerate(CONFIGS):
        write_adapter(LM, root / "base", IA3Config(**IA3), root / name, seed=seed)
        found[name] = {own: tensor.double().numpy() for own, tensor in adapter_tensors(root / name).items()}
        generator = torch.Generator().manual_seed(seed)
        fisher = {
            own: torch.rand(tensor.shape, generator=generator) for own, tensor in adapter_tensors(root / name).items()
        }
        (root / "stats" / name).mkdir(parents=True)
        write_statistic(root / "stats" / name, "diagonal", fisher, OwnFiles(root / name, root / "base"), {})
    return found


@pytest.mark.parametrize("method", ["isotropic", "fisher", "task_arithmetic", "ties"])
def test_ia3_is_merged_coordinate_by_coordinate(tmp_path: Path, method: str) -> None:
    """Its base is ones; the references are those of weights."""
    own = vectors(tmp_path)

    fishers = {name: {"fisher": load_file(tmp_path / "stats" / name / "fisher.safetensors")} for name in CONFIGS}
    ones = {name: np.ones_like(values) for name, values in own["ann"].items()}
    as_weights: Any = SimpleNamespace(weights=own, base=ones, statistics=fishers)
    reference, options = REFERENCES[method]
    merge_checkpoints(
        {name: tmp_path / name for name in CONFIGS},
        tmp_path / "out",
        method=options_of(options),
        coefficients=Λ,
        statistics={name: tmp_path / "stats" / name for name in CONFIGS},
        base=tmp_path / "base",
        precision="float64",
    )
    found = adapter_tensors(tmp_path / "out")
    assert found.keys() == own["ann"].keys()
    for name, tensor in found.items():
        np.testing.assert_allclose(tensor.double().numpy(), reference(as_weights, name), rtol=1e-6, atol=1e-6)
    base = LM.from_pretrained(tmp_path / "base")
    adapted = peft.PeftModel.from_pretrained(base, tmp_path / "out")
    assert adapted.generate(input_ids=torch.tensor([[7, 8]]), min_new_tokens=2, max_new_tokens=2).shape == (1, 4)
    weights = ia3_reference(tmp_path / "base", tmp_path / "out")
    name = "model.layers.1.mlp.down_proj.weight"
    np.testing.assert_allclose(open_weights(tmp_path / "out").read(name).numpy(), weights[name], rtol=1e-5, atol=1e-6)


def test_a_module_that_is_saved_beside_vectors_has_its_bases_values_as_base(tmp_path: Path) -> None:
    """Its task vector is the change of these, as in a merge of whole models."""
    save(tiny_llama(0, tied=True), tmp_path / "base")
    for seed, name in enumerate(CONFIGS):
        write_adapter(
            LM, tmp_path / "base", IA3Config(**IA3, modules_to_save=["input_layernorm"]), tmp_path / name, seed=seed
        )
    merge_checkpoints(
        {name: tmp_path / name for name in CONFIGS},
        tmp_path / "out",
        method=options_of(REFERENCES["task_arithmetic"][1]),
        coefficients=Λ,
        base=tmp_path / "base",
        precision="float64",
    )
    own = {name: {key: t.double().numpy() for key, t in adapter_tensors(tmp_path / name).items()} for name in CONFIGS}
    base = {f"base_model.model.{key}": values for key, values in base_arrays(tmp_path / "base").items()}
    bases = {key: base.get(key, np.ones_like(values)) for key, values in own["ann"].items()}
    assert any(key in base for key in bases)
    as_weights: Any = SimpleNamespace(weights=own, base=bases)
    for name, tensor in adapter_tensors(tmp_path / "out").items():
        np.testing.assert_allclose(tensor.double().numpy(), task_arithmetic(as_weights, name), rtol=1e-6, atol=1e-6)


def test_mixtures_are_refused(shop: Shop, tmp_path: Path) -> None:
    vectors(tmp_path)
    out = tmp_path / "out"

    def merge(*directories: Path, **how: Any) -> None:
        models = {f"m{i}": directory for i, directory in enumerate(directories)}
        merge_checkpoints(models, out, **({"method": "isotropic", "coefficients": dict.fromkeys(models, 1)} | how))

    write_adapter(LM, tmp_path / "base", LoraConfig(**CONFIGS["ann"]), tmp_path / "lora")
    refused("are not both adapters of vectors", lambda: merge(tmp_path / "ann", tmp_path / "lora"))
    refused("are not both adapters of vectors", lambda: merge(tmp_path / "base", tmp_path / "ann"))
    few = IA3Config(target_modules=["k_proj"], feedforward_modules=[])
    write_adapter(LM, tmp_path / "base", few, tmp_path / "few")
    refused("only such adapters of the same places can be averaged", lambda: merge(tmp_path / "ann", tmp_path / "few"))
    save(tiny_llama(5, tied=True), tmp_path / "other")
    write_adapter(LM, tmp_path / "other", LoraConfig(**CONFIGS["ann"]), tmp_path / "foreign")
    refused("only adapters of one base can be merged", lambda: merge(tmp_path / "lora", tmp_path / "foreign"))
    refused(
        "is no LoRA adapter, so the merge cannot be one", lambda: merge(tmp_path / "lora", tmp_path / "base", rank=4)
    )
    refused("is no LoRA adapter, so the merge cannot be one", lambda: merge(tmp_path / "ann", tmp_path / "bob", rank=4))
    assert not out.exists()
    merge(tmp_path / "lora", tmp_path / "base")
    found, lora = load_file(out / "model.safetensors"), lora_reference(tmp_path / "base", tmp_path / "lora")
    mean = (lora[Q] + base_arrays(tmp_path / "base")[Q]) / 2
    np.testing.assert_allclose(found[Q].double().numpy(), mean, rtol=1e-6, atol=1e-6)


def test_statistics_of_other_parameters_are_refused(shop: Shop, tmp_path: Path) -> None:
    """One of A and B; one of weights where vectors are merged; one of too few weights beside a whole model."""
    for statistic in ("diagonal", "kfac"):
        given = {}
        for name in CONFIGS:
            given[name] = tmp_path / statistic / name
            shutil.copytree(shop.root / "stats/adapters" / name, given[name])
            own = {key: torch.ones_like(values) for key, values in adapter_tensors(shop.root / name).items()}
            if statistic == "kfac":
                own = {
                    f"{part}.{key}": torch.eye(n.shape[i])
                    for key, n in own.items()
                    for i, part in ((1, "input"), (0, "output"))
                }
            write_statistic(
                given[name], statistic, own, OwnFiles(shop.root / name, shop.root / "base"), {"transposed": []}
            )
        method = "fisher" if statistic == "diagonal" else "kfac"
        refused(
            r"is of the adapter's own parameters .*since no average of adapters' factors.*of: adapts",
            partial(shop.merge, tmp_path / "out", method=method, statistics=given),
        )
    vectors(tmp_path / "ia3")
    weights = tmp_path / "weights"
    weights.mkdir()
    directories = {name: tmp_path / "ia3" / name for name in CONFIGS}
    files = open_weights(directories["ann"])
    write_statistic(weights, "diagonal", {n: torch.ones(files.specs[n].shape) for n in files.specs}, files, {})
    refused(
        "is of the model's weights, but the adapters' vectors are merged",
        lambda: merge_checkpoints(
            directories, tmp_path / "out", coefficients=Λ, statistics=dict.fromkeys(CONFIGS, weights)
        ),
    )
    mixed = {"ann": shop.root / "ann", "base": shop.root / "base"}
    refused(
        r"lacks the tensor .*\(of an adapter's model: with `fisher: \{of: weights\}`\)",
        lambda: merge_checkpoints(
            mixed,
            tmp_path / "out",
            coefficients=dict.fromkeys(mixed, 1),
            statistics=dict.fromkeys(mixed, shop.root / "stats/adapters/ann"),
        ),
    )


def test_biases_are_no_part_of_an_adapter_of_low_rank(tmp_path: Path) -> None:
    save(tiny_bert(), tmp_path / "base", tiny_tokenizer())
    for seed, (name, bias) in enumerate({"ann": "lora_only", "bob": "none"}.items()):
        config = LoraConfig(r=4, target_modules=["query"], bias=bias)  # type: ignore[arg-type]
        write_adapter(AutoModelForSequenceClassification, tmp_path / "base", config, tmp_path / name, seed=seed)
    directories = {name: tmp_path / name for name in CONFIGS}
    refused(
        r"the merge changes bert.*query\.bias, of which a LoRA adapter has no change of low rank",
        lambda: merge_checkpoints(directories, tmp_path / "out", method="isotropic", coefficients=Λ, rank=4),
    )
    merge_checkpoints(directories, tmp_path / "out", method="isotropic", coefficients=Λ)
    found = load_file(tmp_path / "out/model.safetensors")
    references = {name: lora_reference(tmp_path / "base", tmp_path / name) for name in CONFIGS}
    for name, tensor in found.items():
        mean = sum(share * references[model][name] for model, share in SHARES.items())
        np.testing.assert_allclose(tensor.double().numpy(), mean, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("heads", ["merge", "target", "each"])
@pytest.mark.parametrize("rank", [None, 16])
def test_heads_of_classifiers(tmp_path: Path, heads: Any, rank: int | None) -> None:
    """Each adapter has a head of its own, saved whole."""
    save(tiny_bert(), tmp_path / "base", tiny_tokenizer())
    for seed, name in enumerate(CONFIGS):
        config = LoraConfig(r=4 + 12 * seed, target_modules=["query", "value"], modules_to_save=["classifier"])
        write_adapter(AutoModelForSequenceClassification, tmp_path / "base", config, tmp_path / name, seed=seed)
    directories = {name: tmp_path / name for name in CONFIGS}
    merge_checkpoints(
        directories, tmp_path / "out", method="isotropic", coefficients=Λ, heads=heads, rank=rank, precision="float64"
    )
    references = {name: lora_reference(tmp_path / "base", tmp_path / name) for name in CONFIGS}
    found = open_weights(tmp_path / "out")
    for name in found.specs:
        shares = {"ann": 1.0, "bob": 0.0} if name.startswith("classifier") and heads != "merge" else SHARES
        expected = sum(share * references[model][name] for model, share in shares.items())
        np.testing.assert_allclose(found.read(name).double().numpy(), expected, rtol=1e-5, atol=2e-6)
    if heads == "each":
        for name in CONFIGS:
            head = TensorFiles(tmp_path / "out/heads", name)
            assert head.specs.keys() == {"classifier.weight", "classifier.bias"}
            own = adapter_tensors(tmp_path / name)
            assert torch.equal(head.read("classifier.bias"), own["base_model.model.classifier.bias"])
    if rank is not None:
        assert config_of(tmp_path / "out")["modules_to_save"] == ["classifier"]


def test_a_base_that_has_gone_on(shop: Shop, tmp_path: Path) -> None:
    """The base by other bytes: another model, and the cards say so."""
    shop.merge(tmp_path / "out", method="isotropic", rank=6)
    change_config(tmp_path / "out", base_model_name_or_path=str(tmp_path / "gone"))
    refused("is no directory here", lambda: open_weights(tmp_path / "out"))
    assert (
        open_weights(tmp_path / "out", shop.root / "base").fingerprint()
        == json.loads((tmp_path / "out/checkpoint.json").read_text())["fingerprint"]
    )
