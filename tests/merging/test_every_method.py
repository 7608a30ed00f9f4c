"""What holds for merged checkpoints whatever the method: the rules on λ = 1, 0/0, NaN, fingerprints and heads."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, GPT2Config, GPT2LMHeadModel

from stages.merging import (
    Dare,
    Fisher,
    Isotropic,
    Kfac,
    Regmean,
    Slerp,
    TaskArithmetic,
    Ties,
    Uncertainty,
    merge_checkpoints,
)
from stages.merging.ingredients import Ingredients
from stages.merging.methods import METHODS
from stages.merging.options import MethodOptions
from stages.merging.streaming import CHUNK_VALUES
from stages.running.errors import InputError
from stages.storage.cards import read_json, write_json
from stages.storage.checkpoint_files import CHECKPOINT_CARD
from stages.storage.statistics import TRANSPOSED, write_statistic
from stages.storage.tensors import TensorFiles, fingerprint
from tests.merging.models import gram
from tests.merging.zoo import Zoo, poisoned, without
from tests.tiny import tiny_tokenizer

OPTIONS: dict[str, Any] = {
    "isotropic": Isotropic(),
    "fisher": Fisher(favor_target=False),
    "regmean": Regmean(),
    "kfac": Kfac(favor_target=False, iterations=200, tolerance=1e-12),
    "uncertainty": Uncertainty(),
    "task_arithmetic": TaskArithmetic(),
    "ties": Ties(),
    "ties, trimmed globally": Ties(trim="global"),
    "dare": Dare(),
    "slerp": Slerp(),
}
W = "bert.encoder.layer.1.attention.output.dense.weight"


def methods(chosen: Callable[[Any], bool]) -> pytest.MarkDecorator:
    """Run a test for every method that is chosen."""
    kept = {name: options for name, options in OPTIONS.items() if chosen(options)}
    return pytest.mark.parametrize("method", kept.values(), ids=kept)


each_method = methods(lambda _: True)
each_method_with_statistics = methods(lambda options: bool(options.statistics))
each_method_with_a_base = methods(lambda options: options.needs_base)
each_method_of_many_models = methods(lambda options: not isinstance(options, Slerp))


def zoo_for(method: Any, root: Path) -> tuple[Zoo, dict[str, float]]:
    """Models and λ; two where the method takes no more."""
    names = ("ann", "bob") if isinstance(method, Slerp) else ("ann", "bob", "cid")
    return Zoo.of(root, *names), dict(zip(names, (0.5, 0.2, 0.3), strict=False))


def test_a_method_that_needs_an_unknown_statistic_is_refused_where_it_is_declared() -> None:
    with pytest.raises(TypeError, match=r"Odd: statistics: there is no statistic 'hessian'; known: diagonal, gram, "):
        type("Odd", (MethodOptions,), {"statistics": ("hessian",)})


def test_no_method_is_left_out() -> None:
    assert {options.method for options in OPTIONS.values()} == METHODS.keys() - {"ensemble"}


@each_method
def test_all_weight_on_one_model_gives_it_back_bit_for_bit(tmp_path: Path, method: Any) -> None:
    zoo, λ = zoo_for(method, tmp_path)
    for model in ("ann", "bob"):
        found = zoo.merge_by(method, {name: float(name == model) for name in λ})
        for name, value in zoo.tensors(model).items():
            assert torch.equal(found[name], value), name


@each_method
def test_models_that_agree_are_given_back_bit_for_bit(tmp_path: Path, method: Any) -> None:
    if isinstance(method, Ties | Dare):
        method = method.model_copy(update={"density": 1.0})  # they change even a single model otherwise
    zoo, λ = zoo_for(method, tmp_path)
    for model in λ.keys() - {"ann"}:
        shutil.copyfile(zoo.checkpoints["ann"] / "model.safetensors", zoo.checkpoints[model] / "model.safetensors")
        zoo.write_card(model)
    found = zoo.merge_by(method, λ)
    for name, value in zoo.tensors("ann").items():
        assert torch.equal(found[name], value), name


@each_method
def test_no_statistic_says_anything_of_a_tensor(tmp_path: Path, method: Any) -> None:
    """0/0: the target's value stands in Fisher merges, the average in the others; nothing is NaN."""
    zoo, λ = zoo_for(method, tmp_path)
    update = {"floor": 0.0, "favor_target": True} if isinstance(method, Fisher | Kfac) else {}
    update |= {"delta": 0.0} if isinstance(method, Uncertainty) else {}
    for model in λ:
        zoo.change_fisher(model, lambda fisher: fisher[W].zero_())
    zoo.uninformed = W
    found = zoo.merge_by(method.model_copy(update=update), λ)
    assert all(torch.isfinite(value).all() for value in found.values())
    if isinstance(method, Fisher | Kfac):
        assert torch.equal(found[W], zoo.tensors("ann")[W])
    if isinstance(method, Regmean | Uncertainty):
        average = sum(λ[name] * zoo.tensors(name)[W].double() for name in λ)
        torch.testing.assert_close(found[W].double(), average, rtol=1e-5, atol=1e-7)


@each_method
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_bad_values_are_named_and_the_output_stays(tmp_path: Path, method: Any, value: float) -> None:
    zoo, λ = zoo_for(method, tmp_path)
    before = zoo.merge_by(method, λ)
    zoo.change("bob", poisoned(W, value))
    kind = "a NaN" if value != value else "an infinite"
    with pytest.raises(InputError, match=rf"bob.model\.safetensors: tensor {W} has {kind} entry") as caught:
        zoo.merge_by(method, λ)
    assert "\n" not in str(caught.value)
    after = load_file(tmp_path / "merged" / "model.safetensors")
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert not list(tmp_path.glob(".partial*"))


@methods(lambda options: bool({"kfac", "gram"} & set(options.statistics)))
def test_bad_values_of_factors_are_named(tmp_path: Path, method: Any) -> None:
    zoo, λ = zoo_for(method, tmp_path)
    statistics = {name: [zoo.fishers[name], zoo.factors(name)] for name in λ}
    stem = method.statistics[-1]
    file = zoo.factors("bob") / f"{stem}.safetensors"
    factors = load_file(file)
    factors[f"input.{W}"][0, 0] = float("nan")
    save_file(factors, file)
    with pytest.raises(InputError, match=rf"bob-factors.{stem}\.safetensors: tensor input\.{W} has a NaN entry"):
        zoo.merge_by(method, λ, statistics=statistics)


@each_method_with_a_base
def test_bad_values_of_the_base_are_named(tmp_path: Path, method: Any) -> None:
    zoo, λ = zoo_for(method, tmp_path)
    file, own = zoo.base() / "model.safetensors", W.removeprefix("bert.")
    tensors = load_file(file)
    tensors[own][0, 0] = float("inf")
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match=rf"base.model\.safetensors: tensor {own} has an infinite entry"):
        zoo.merge_by(method.model_copy(update={"scale": 0.5}), λ)


@each_method_with_statistics
def test_statistics_of_another_checkpoint_are_refused(tmp_path: Path, method: Any) -> None:
    zoo, λ = zoo_for(method, tmp_path)
    statistics = {name: [zoo.fishers[name], zoo.factors(name)] for name in λ}
    swapped = statistics | {"bob": statistics["ann"]}
    with pytest.raises(InputError, match=r"ann-.*json: belongs to the checkpoint .* but .*bob is"):
        zoo.merge_by(method, λ, statistics=swapped)
    with pytest.raises(InputError, match="of every model; missing: bob"):
        zoo.merge_by(method, λ, statistics={name: found for name, found in statistics.items() if name != "bob"})


@each_method_with_statistics
def test_changed_statistics_are_refused(tmp_path: Path, method: Any) -> None:
    zoo, λ = zoo_for(method, tmp_path)
    statistics = {name: [zoo.fishers[name], zoo.factors(name)] for name in λ}
    stem = {"diagonal": "fisher"}.get(method.statistics[-1], method.statistics[-1])
    file = next(place for place in statistics["bob"] if (place / f"{stem}.json").is_file()) / f"{stem}.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    with pytest.raises(InputError, match=rf"contents are not what {stem}\.json says"):
        zoo.merge_by(method, λ, statistics=statistics)


@each_method_with_a_base
def test_a_missing_base_is_said(tmp_path: Path, method: Any) -> None:
    zoo, λ = zoo_for(method, tmp_path)
    with pytest.raises(InputError, match="needs the base that the models were fine-tuned from"):
        zoo.merge_by(method, λ, base=None)
    other = Zoo(tmp_path / "other")
    other.add("wide", hidden_size=32)
    with pytest.raises(InputError, match=r"wide.config\.json: hidden_size is 32, but 16 in .*ann.config\.json"):
        zoo.merge_by(method, λ, base=other.checkpoints["wide"])
    (other.checkpoints["wide"] / "config.json").unlink()
    with pytest.raises(InputError, match="it is not the base of these models"):
        zoo.merge_by(method, λ, base=other.checkpoints["wide"])


@each_method
def test_heads(tmp_path: Path, method: Any) -> None:
    zoo, λ = zoo_for(method, tmp_path)
    zoo.add("bob", labels=("x", "y", "z"))
    found = zoo.merge_by(method, λ)
    assert torch.equal(found["classifier.weight"], zoo.tensors("ann")["classifier.weight"])
    assert not torch.equal(found[W], zoo.tensors("ann")[W])
    zoo.merge_by(method, λ, heads="each")
    for model in λ:
        head = load_file(tmp_path / "merged" / "heads" / f"{model}.safetensors")
        assert torch.equal(head["classifier.weight"], zoo.tensors(model)["classifier.weight"])


POOLER = ["bert.pooler.dense.bias", "bert.pooler.dense.weight"]


@each_method
def test_what_a_donor_lacks_is_the_targets(tmp_path: Path, method: Any) -> None:
    """A masked-LM donor has no pooler; the rest is merged as where the target has none either."""
    zoo, λ = zoo_for(method, tmp_path)
    zoo.add_masked_lm("bob")
    found = zoo.merge_by(method, λ, heads="target")
    ann = zoo.tensors("ann")
    assert found.keys() == ann.keys()
    for name in (*POOLER, "classifier.weight", "classifier.bias"):
        assert torch.equal(found[name], ann[name]), name
    card = read_json(tmp_path / "merged" / CHECKPOINT_CARD)
    assert card["origin"]["heads"] == "target"
    assert card["origin"]["kept"] == POOLER
    assert "bert.pooler.dense.bias" in (tmp_path / "merged/README.md").read_text()
    _, loading = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not any(loading[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))

    alone = zoo.merge_by(method, dict.fromkeys(λ, 0.0) | {"bob": 1.0}, heads="target")
    for name, value in alone.items():
        assert torch.equal(value, zoo.tensors("bob").get(name, ann[name]) if name not in POOLER else ann[name])
    for heads in ("merge", "each"):
        with pytest.raises(InputError, match=r"bob.*: lacks the tensor bert\.pooler\.dense\.bias, which ann has"):
            zoo.merge_by(method, λ, heads=heads)

    for name in POOLER:
        for model in λ.keys() - {"bob"}:
            zoo.change(model, without(name))
    wanted = zoo.merge_by(method, λ, heads="target")
    assert all(torch.equal(found[name], value) for name, value in wanted.items())
    assert not torch.equal(wanted[W], ann[W])
    assert "kept" not in read_json(tmp_path / "merged" / CHECKPOINT_CARD)["origin"]


def test_what_is_wrong_with_a_donor_that_lacks_something(tmp_path: Path) -> None:
    zoo = Zoo.of(tmp_path, "ann")
    zoo.add_masked_lm("bob")
    λ = {"ann": 0.5, "bob": 0.5}
    bob = zoo.tensors("bob")
    zoo.change("bob", lambda tensors: tensors.update({W: bob[W][:, :5].clone()}))
    with pytest.raises(InputError, match=rf"bob.*tensor {W} has the shape \[16, 5\], but ann's has \[16, 16\]"):
        zoo.merge(λ, heads="target")
    zoo.change("bob", lambda tensors: tensors.update({W: bob[W], "bert.extra.weight": bob[W].clone()}))
    with pytest.raises(InputError, match=r"ann.*: lacks the tensor bert\.extra\.weight, which bob has"):
        zoo.merge(λ, heads="target")
    save_file({"cls.bias": torch.zeros(3)}, zoo.checkpoints["bob"] / "model.safetensors")
    with pytest.raises(InputError, match=r"ann.*: the other models together have no tensor of its body"):
        zoo.merge(λ, heads="target")


@each_method
def test_the_result_is_a_checkpoint_with_cards(tmp_path: Path, method: Any) -> None:
    zoo, λ = zoo_for(method, tmp_path)
    zoo.merge_by(method, λ)
    _, loading = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not any(loading[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    card = (tmp_path / "merged" / "README.md").read_text()
    assert f"Method: {method.method}" in card
    assert "| bob | 0.2" in card or "| bob | 0.28" in card


@each_method
def test_coefficients_are_relative(tmp_path: Path, method: Any) -> None:
    zoo, λ = zoo_for(method, tmp_path)
    first = zoo.merge_by(method, λ)
    scaled = zoo.merge_by(method, {name: 8 * value for name, value in λ.items()})
    for name, value in first.items():
        torch.testing.assert_close(scaled[name], value, rtol=1e-6, atol=1e-7)


@each_method
def test_the_models_order_changes_nothing(tmp_path: Path, method: Any) -> None:
    zoo, λ = zoo_for(method, tmp_path)
    first = zoo.merge_by(method, λ)
    zoo.checkpoints = dict(reversed(zoo.checkpoints.items()))
    second = zoo.merge_by(method, λ)
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-4, atol=1e-6)


@each_method_of_many_models
def test_a_model_without_weight_takes_no_part(tmp_path: Path, method: Any) -> None:
    zoo, λ = zoo_for(method, tmp_path)
    with_it = zoo.merge_by(method, λ | {"cid": 0.0})
    del zoo.checkpoints["cid"]
    without_it = zoo.merge_by(method, {"ann": 0.5, "bob": 0.2})
    assert all(torch.equal(with_it[name], value) for name, value in without_it.items())


@each_method
def test_same_bits_whatever_the_number_of_threads(tmp_path: Path, method: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    zoo, λ = zoo_for(method, tmp_path)
    found = []
    for count in (1, 2, 5):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, count=count: set(range(count)))
        found.append(zoo.merge_by(method, λ))
    assert all(torch.equal(found[0][name], other[name]) for other in found[1:] for name in other)


@each_method
def test_types_shards_and_precision(tmp_path: Path, method: Any) -> None:
    """Mixed types and shards give, in float64 and in float32, the same to float32's rounding."""
    zoo, λ = zoo_for(method, tmp_path)
    for model, dtype in (("ann", torch.float32), ("bob", torch.bfloat16)):
        loaded = AutoModelForSequenceClassification.from_pretrained(zoo.checkpoints[model]).to(dtype)
        directory = tmp_path / f"{model}-shards"
        loaded.save_pretrained(directory, max_shard_size="5KB" if model == "bob" else "1GB")
        tiny_tokenizer().save_pretrained(directory)
        zoo.checkpoints[model] = directory
        zoo.write_card(model)
    narrow = zoo.merge_by(method, λ)
    wide = zoo.merge_by(method, λ, precision="float64")
    for name, value in narrow.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(wide[name], value, rtol=1e-4, atol=1e-5)


@each_method
def test_chunks_make_no_difference(tmp_path: Path, method: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors larger than a chunk are merged as smaller ones are."""
    zoo, λ = zoo_for(method, tmp_path)
    assert max(value.numel() for value in zoo.tensors("ann").values()) < CHUNK_VALUES
    whole = zoo.merge_by(method, λ)
    monkeypatch.setattr("stages.merging.streaming.CHUNK_VALUES", 50)
    chunked = zoo.merge_by(method, λ)
    for name, value in whole.items():
        torch.testing.assert_close(chunked[name], value, rtol=1e-5, atol=1e-7)


@each_method
def test_integer_tensors_are_copied_if_equal(tmp_path: Path, method: Any) -> None:
    zoo, λ = zoo_for(method, tmp_path)
    for name in λ:
        zoo.change(name, lambda tensors: tensors.update({"bert.steps": torch.arange(4)}))
    assert torch.equal(zoo.merge_by(method, λ)["bert.steps"], torch.arange(4))
    zoo.change("bob", lambda tensors: tensors.update({"bert.steps": torch.arange(1, 5)}))
    with pytest.raises(InputError, match=r"bob.*the integer tensor bert\.steps differs from ann's"):
        zoo.merge_by(method, λ)


def test_a_prior_that_is_a_models_fisher(tmp_path: Path) -> None:
    """Against the formula of uncertainty-based gradient matching in float64."""
    zoo = Zoo.of(tmp_path, "ann", "bob", "old")
    prior = zoo.fishers["old"]
    fisher_of = {name: load_file(zoo.fishers[name] / "fisher.safetensors")[W].double() for name in zoo.fishers}
    del zoo.checkpoints["old"]
    statistics = {name: zoo.fishers[name] for name in zoo.checkpoints} | {"old": prior}
    λ = {"ann": 0.25, "bob": 0.75}
    found = zoo.merge_by(Uncertainty(scale=1.6, delta=1e-3, prior="old"), λ, statistics=statistics)[W].double()
    base = load_file(zoo.base() / "model.safetensors")[W.removeprefix("bert.")].double()
    first = fisher_of["old"] + 1e-3
    total = first + sum(1.6 * λ[name] * fisher_of[name] for name in λ)
    wanted = base + sum(
        1.6 * λ[name] * (first + fisher_of[name]) / total * (zoo.tensors(name)[W].double() - base) for name in λ
    )
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
    with pytest.raises(InputError, match="the prior's Fisher is missing: statistics lack old"):
        zoo.merge_by(Uncertainty(prior="old"), λ)


def test_factors_of_transposed_weights(tmp_path: Path) -> None:
    """A weight stored as [in, out] is merged as its transpose would be."""
    results = {}
    for stored in ("linear", "transposed"):
        generator = torch.Generator().manual_seed(0)
        checkpoints, statistics = {}, {}
        for name in ("ann", "bob"):
            directory = tmp_path / stored / name
            directory.mkdir(parents=True)
            weight = torch.randn(4, 6, generator=generator)
            fisher = torch.rand(4, 6, generator=generator)
            turn = (lambda tensor: tensor) if stored == "linear" else (lambda tensor: tensor.T.contiguous())
            save_file({"body.weight": turn(weight)}, directory / "model.safetensors")
            write_json(directory / "config.json", {"model_type": "any"})
            write_json(directory / CHECKPOINT_CARD, {"base_model_prefix": "body"})
            inputs = gram(torch.randn(20, 6, generator=generator))
            outputs = gram(torch.randn(20, 4, generator=generator))
            files = TensorFiles(directory)
            card = {TRANSPOSED: ["body.weight"]} if stored == "transposed" else {}
            factors = {"input.body.weight": inputs, "output.body.weight": outputs}
            write_statistic(directory, "kfac", factors, files, card)
            write_statistic(directory, "gram", {"input.body.weight": inputs}, files, card)
            write_statistic(directory, "diagonal", {"body.weight": turn(fisher)}, files, {})
            checkpoints[name] = statistics[name] = directory
        for method in ("regmean", "kfac"):
            out = tmp_path / stored / method
            merge_checkpoints(
                checkpoints,
                out,
                method=method,
                coefficients={"ann": 0.3, "bob": 0.7},
                statistics=statistics,
                precision="float64",
            )
            merged = load_file(out / "model.safetensors")["body.weight"]
            results[stored, method] = merged if stored == "linear" else merged.T
    for method in ("regmean", "kfac"):
        torch.testing.assert_close(results["linear", method], results["transposed", method], rtol=1e-6, atol=1e-7)


def test_a_statistic_of_another_checkpoint_is_refused_before_anything_is_merged(tmp_path: Path) -> None:
    """Where the checkpoint's card says its fingerprint, nothing needs to be read."""
    zoo = Zoo.of(tmp_path, "ann", "bob")
    bob = zoo.checkpoints["bob"]
    card = {"base_model_prefix": "bert", "fingerprint": fingerprint(TensorFiles(bob))}
    write_json(bob / CHECKPOINT_CARD, card)
    opened = Ingredients(zoo.checkpoints, Fisher(), zoo.fishers)
    assert list(opened.checkpoints) == ["ann", "bob"]
    with pytest.raises(InputError, match=r"ann-fisher.fisher\.json: belongs to the checkpoint .* but .*bob is"):
        Ingredients(zoo.checkpoints, Fisher(), {"ann": zoo.fishers["ann"], "bob": zoo.fishers["ann"]})


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    """GPT-2's head is its embedding, which the files hold once."""
    checkpoints = {}
    for seed, name in enumerate(("ann", "bob")):
        torch.manual_seed(seed)
        config = GPT2Config(vocab_size=20, n_positions=8, n_embd=8, n_layer=1, n_head=2)
        GPT2LMHeadModel(config).save_pretrained(tmp_path / name)
        checkpoints[name] = tmp_path / name
    merge_checkpoints(checkpoints, tmp_path / "out", method="isotropic", coefficients={"ann": 0.5, "bob": 0.5})
    merged = GPT2LMHeadModel.from_pretrained(tmp_path / "out")
    assert merged.lm_head.weight is merged.transformer.wte.weight
    stored = [
        load_file(directory / "model.safetensors")["transformer.wte.weight"] for directory in checkpoints.values()
    ]
    torch.testing.assert_close(merged.transformer.wte.weight, sum(stored) / 2)
