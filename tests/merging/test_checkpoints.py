"""Merged checkpoints against an independent float64 evaluation of the formula, and inputs that must be refused."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from stages.merging import Fisher, merge_checkpoints
from stages.running.errors import InputError
from stages.storage.cards import write_json
from stages.storage.digests import write_contents
from stages.storage.statistics import write_statistic
from stages.storage.tensors import TensorFiles, fingerprint
from tests.cards import rewrite_card
from tests.merging.zoo import Zoo, poisoned, without
from tests.tiny import tiny_tokenizer


@pytest.fixture
def zoo(tmp_path: Path) -> Zoo:
    zoo = Zoo(tmp_path)
    for name in ("ann", "bob", "cid"):
        zoo.add(name)
    return zoo


def expected(
    zoo: Zoo, coefficients: Mapping[str, float], floor: float = 1e-6, favor_target: bool = True, normalize: str = "l2"
) -> dict[str, np.ndarray]:
    """Matena & Raffel's eq. 5 with their reference code's floor and norm, in float64."""
    names = list(zoo.checkpoints)
    thetas = [{k: v.double().numpy() for k, v in zoo.tensors(name).items()} for name in names]
    fishers = [
        {k: v.double().numpy() for k, v in load_file(zoo.fishers[name] / "fisher.safetensors").items()}
        for name in names
    ]
    λ = np.array([coefficients[name] for name in names]) / sum(coefficients.values())
    if normalize == "l2":
        λ = λ / [np.sqrt(sum((f**2).sum() for f in fisher.values())) for fisher in fishers]
    merged = {}
    for key in thetas[0]:
        numerator = denominator = np.zeros_like(thetas[0][key])
        for i, (theta, fisher) in enumerate(zip(thetas, fishers, strict=True)):
            floored = np.maximum(fisher[key], floor) if i == 0 or not favor_target else fisher[key]
            numerator = numerator + λ[i] * floored * theta[key]
            denominator = denominator + λ[i] * floored
        merged[key] = np.where(denominator > 0, numerator / np.where(denominator > 0, denominator, 1), thetas[0][key])
    return merged


λ3 = {"ann": 0.5, "bob": 0.2, "cid": 0.3}


@pytest.mark.parametrize("normalize", ["l2", "none"])
@pytest.mark.parametrize("favor_target", [True, False])
@pytest.mark.parametrize("floor", [0.0, 1e-6, 1e-2])
def test_fisher_is_the_formula(zoo: Zoo, floor: float, favor_target: bool, normalize: Any) -> None:
    found = zoo.merge(λ3, method=Fisher(floor=floor, favor_target=favor_target, normalize=normalize))
    wanted = expected(zoo, λ3, floor, favor_target, normalize)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name].double().numpy(), value, rtol=1e-5, atol=1e-7, err_msg=name)


def test_isotropic_is_the_mean(zoo: Zoo) -> None:
    found = zoo.merge(λ3, method="isotropic", statistics=None)
    for name, value in found.items():
        wanted = sum(λ * zoo.tensors(model)[name].double() for model, λ in λ3.items())
        torch.testing.assert_close(value.double(), wanted, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("method", ["isotropic", "fisher"])
@pytest.mark.parametrize("model", ["ann", "bob"])
def test_all_weight_on_one_model_gives_it_back_bit_for_bit(zoo: Zoo, method: str, model: str) -> None:
    zoo.change_fisher(model, lambda fisher: fisher["classifier.weight"].zero_())
    found = zoo.merge({name: float(name == model) for name in zoo.checkpoints}, method=method)
    for name, value in zoo.tensors(model).items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("floor", [0.0, 1e-6])
def test_the_targets_value_stands_where_every_fisher_is_zero(zoo: Zoo, floor: float) -> None:
    name = "bert.encoder.layer.0.output.dense.weight"
    for model in zoo.checkpoints:
        zoo.change_fisher(model, lambda fisher: fisher[name].zero_())
    found = zoo.merge(λ3, method=Fisher(floor=floor))
    assert torch.equal(found[name], zoo.tensors("ann")[name])


@pytest.mark.parametrize("method", ["isotropic", "fisher"])
def test_models_that_agree_are_given_back_bit_for_bit(zoo: Zoo, method: str) -> None:
    for model in ("bob", "cid"):
        shutil.copyfile(zoo.checkpoints["ann"] / "model.safetensors", zoo.checkpoints[model] / "model.safetensors")
        zoo.write_card(model)
    found = zoo.merge(λ3, method=method)
    for name, value in zoo.tensors("ann").items():
        assert torch.equal(found[name], value), name


def test_scaling_coefficients_or_fishers_changes_nothing(zoo: Zoo) -> None:
    first = zoo.merge(λ3, method=Fisher(floor=0))
    scaled = zoo.merge({name: 8 * λ for name, λ in λ3.items()}, method=Fisher(floor=0))
    for model in zoo.checkpoints:
        zoo.set_fisher(model, {k: 1024 * v for k, v in load_file(zoo.fishers[model] / "fisher.safetensors").items()})
    rescaled = zoo.merge(λ3, method=Fisher(floor=0))
    for name, value in first.items():
        torch.testing.assert_close(scaled[name], value, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(rescaled[name], value, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_wide_and_written_narrow(tmp_path: Path, dtype: torch.dtype) -> None:
    zoo = Zoo(tmp_path)
    for name in ("ann", "bob"):
        zoo.add(name, dtype)
        zoo.set_fisher(name, {key: value.float() for key, value in zoo.random_fisher(name).items()})
    λ = {"ann": 0.5, "bob": 0.5}
    for name, value in expected(zoo, λ).items():
        found = zoo.merge(λ)[name]
        assert found.dtype == dtype
        wanted = torch.from_numpy(value).to(dtype)
        torch.testing.assert_close(found, wanted, rtol=torch.finfo(dtype).eps, atol=1e-6)


def test_the_result_is_a_checkpoint(zoo: Zoo) -> None:
    zoo.merge(λ3)
    directory = zoo.root / "merged"
    model, loading = AutoModelForSequenceClassification.from_pretrained(directory, output_loading_info=True)
    assert not any(loading[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.config.id2label == {0: "bad", 1: "good"}
    assert (directory / "tokenizer.json").is_file()
    card = json.loads((directory / "checkpoint.json").read_text())
    assert card["fingerprint"] == fingerprint(TensorFiles(directory))
    assert card["origin"]["coefficients"] == λ3
    assert card["origin"]["heads"] == "merge"


def test_shards_in_and_out(zoo: Zoo) -> None:
    whole = zoo.merge(λ3)
    sharded = zoo.root / "sharded"
    AutoModelForSequenceClassification.from_pretrained(zoo.checkpoints["bob"]).save_pretrained(
        sharded, max_shard_size="5KB"
    )
    tiny_tokenizer().save_pretrained(sharded)
    assert len(list(sharded.glob("*.safetensors"))) > 2
    assert fingerprint(TensorFiles(sharded)) == fingerprint(TensorFiles(zoo.checkpoints["bob"]))
    zoo.checkpoints["bob"] = sharded
    out = zoo.root / "out"
    merge_checkpoints(zoo.checkpoints, out, coefficients=λ3, statistics=zoo.fishers, max_shard_size=8000)
    assert len(list(out.glob("*.safetensors"))) > 2
    model, loading = AutoModelForSequenceClassification.from_pretrained(out, output_loading_info=True)
    assert not loading["missing_keys"]
    for name, value in model.state_dict().items():
        assert torch.equal(value, whole[name])


def test_same_bits_twice(zoo: Zoo) -> None:
    first, second = zoo.merge(λ3), zoo.merge(λ3)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_other_labels_keep_the_targets_head(zoo: Zoo) -> None:
    zoo.add("dan", labels=("x", "y", "z"))
    found = zoo.merge({**λ3, "dan": 0.5})
    assert torch.equal(found["classifier.weight"], zoo.tensors("ann")["classifier.weight"])
    assert not torch.equal(found["bert.pooler.dense.weight"], zoo.tensors("ann")["bert.pooler.dense.weight"])
    card = json.loads((zoo.root / "merged" / "checkpoint.json").read_text())
    assert card["origin"]["heads"] == "target"
    assert card["labels"] == ["bad", "good"]


def test_each_models_head_is_kept(zoo: Zoo) -> None:
    zoo.add("dan", labels=("x", "y", "z"))
    zoo.merge({**λ3, "dan": 0.5}, heads="each")
    for model in zoo.checkpoints:
        head = load_file(zoo.root / "merged" / "heads" / f"{model}.safetensors")
        assert sorted(head) == ["classifier.bias", "classifier.weight"]
        assert torch.equal(head["classifier.weight"], zoo.tensors(model)["classifier.weight"])


@pytest.mark.parametrize(
    ("problems", "kept"),
    [
        (("single_label_classification", "multi_label_classification", None), "target"),
        (("regression", None, "single_label_classification"), "target"),
        (("regression", None, "regression"), "merge"),
        ((None, None, None), "merge"),
    ],
)
def test_heads_of_other_kinds_are_not_merged(zoo: Zoo, problems: tuple[str | None, ...], kept: str) -> None:
    """Though their labels and tensors have the same names and shapes, a logit of one is nothing to the other."""
    for name, problem in zip(zoo.checkpoints, problems, strict=True):
        config = zoo.checkpoints[name] / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"problem_type": problem}))
    zoo.merge(λ3, method="isotropic")
    merged, head = load_file(zoo.root / "merged/model.safetensors"), zoo.tensors("ann")["classifier.weight"]
    assert torch.equal(merged["classifier.weight"], head) == (kept == "target")
    assert json.loads((zoo.root / "merged/checkpoint.json").read_text())["origin"]["heads"] == kept


W = "bert.encoder.layer.1.attention.output.dense.weight"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda zoo: zoo.change("bob", without(W)), rf"bob.*lacks the tensor {W}"),
        (lambda zoo: zoo.change("ann", without(W)), rf"ann.*lacks the tensor {W}"),
        (lambda zoo: zoo.change("bob", poisoned(W, float("nan"))), rf"bob.*{W} has a NaN entry"),
        (lambda zoo: zoo.change("cid", poisoned(W, float("inf"))), rf"cid.*{W} has an infinite entry"),
        (lambda zoo: zoo.change_fisher("bob", poisoned(W, float("nan"))), rf"bob-fisher.*{W} has a NaN entry"),
        (lambda zoo: zoo.change_fisher("bob", poisoned(W, float("inf"))), rf"bob-fisher.*{W} has an infinite entry"),
        (lambda zoo: zoo.change_fisher("bob", poisoned(W, -1e-9)), rf"bob-fisher.*{W} has a negative entry"),
        (lambda zoo: zoo.change_fisher("bob", without(W)), rf"bob-fisher.*lacks the tensor {W}"),
        (lambda zoo: zoo.change_fisher("bob", lambda f: f.update({W: f[W][:3].clone()})), rf"{W} is float32 \[3, 16\]"),
        (lambda zoo: zoo.change_fisher("bob", lambda f: [v.zero_() for v in f.values()]), "zero everywhere"),
        (lambda zoo: zoo.change("bob", lambda t: t.update({W: t[W][:, :5].clone()})), rf"{W} has the shape \[16, 5\]"),
        (lambda zoo: zoo.fishers.update(bob=zoo.fishers["cid"]), "belongs to the checkpoint"),
        (lambda zoo: zoo.fishers.pop("bob"), "missing: bob"),
        (lambda zoo: (zoo.checkpoints["bob"] / "model.safetensors").unlink(), r"bob.model\.safetensors: not found"),
        (lambda zoo: (zoo.checkpoints["bob"] / "config.json").write_text("{"), r"config\.json: not valid JSON"),
        (lambda zoo: tiny_tokenizer(["other", "words"]).save_pretrained(zoo.checkpoints["cid"]), "another vocabulary"),
        (lambda zoo: zoo.checkpoints.update(bob=zoo.root / "nowhere"), "no such checkpoint directory"),
    ],
)
def test_bad_inputs_are_named_and_the_output_stays(zoo: Zoo, spoil: Callable[[Zoo], Any], message: str) -> None:
    before = zoo.merge(λ3)
    spoil(zoo)
    with pytest.raises(InputError, match=message) as caught:
        zoo.merge(λ3)
    assert "\n" not in str(caught.value)
    after = load_file(zoo.root / "merged" / "model.safetensors")
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert not list(zoo.root.glob(".partial*"))


@pytest.mark.parametrize("cut", [4, 60, 5000])
@pytest.mark.parametrize("kind", ["checkpoint", "fisher"])
def test_truncated_files_are_refused(zoo: Zoo, cut: int, kind: str) -> None:
    file = (
        zoo.checkpoints["bob"] / "model.safetensors"
        if kind == "checkpoint"
        else zoo.fishers["bob"] / "fisher.safetensors"
    )
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(InputError, match=r"bob.*safetensors: not a whole safetensors file"):
        zoo.merge(λ3)


def test_a_changed_fisher_file_is_noticed(zoo: Zoo) -> None:
    file = zoo.fishers["bob"] / "fisher.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"contents are not what fisher\.json says"):
        zoo.merge(λ3)


def flip_last_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def test_a_changed_checkpoint_is_noticed_by_its_own_card(zoo: Zoo) -> None:
    write_json(
        zoo.checkpoints["bob"] / "checkpoint.json",
        {"base_model_prefix": "bert", "fingerprint": fingerprint(TensorFiles(zoo.checkpoints["bob"]))},
    )
    zoo.merge(λ3, method="isotropic")
    flip_last_bit(zoo.checkpoints["bob"] / "model.safetensors")
    with pytest.raises(InputError, match=r"bob.*contents are not what checkpoint\.json says"):
        zoo.merge(λ3, method="isotropic")
    with pytest.raises(InputError, match=r"bob.*contents are not what checkpoint\.json says"):
        zoo.merge({**λ3, "bob": 0.0}, method="isotropic")


def test_a_changed_base_is_noticed_by_its_own_card(zoo: Zoo) -> None:
    card = {"fingerprint": fingerprint(TensorFiles(zoo.base()))}
    write_json(zoo.base() / "checkpoint.json", card)
    zoo.merge_by("task_arithmetic", λ3)
    flip_last_bit(zoo.base() / "model.safetensors")
    with pytest.raises(InputError, match=r"base.*contents are not what checkpoint\.json says"):
        zoo.merge_by("task_arithmetic", λ3)


def test_norms_are_taken_from_a_card_only_as_it_was_written(zoo: Zoo) -> None:
    found = zoo.merge(λ3)
    for name, directory in zoo.fishers.items():
        mapped = load_file(directory / "fisher.safetensors")
        fisher = {tensor: values.clone() for tensor, values in mapped.items()}
        write_statistic(directory, "diagonal", fisher, TensorFiles(zoo.checkpoints[name]), {})
    assert all(torch.equal(value, found[name]) for name, value in zoo.merge(λ3).items())
    file = zoo.fishers["bob"] / "fisher.json"
    card = json.loads(file.read_text())
    card["tensors"][W]["norm"] *= 100
    write_json(file, card)
    with pytest.raises(InputError, match=r"bob-fisher.fisher\.json: is not as it was written"):
        zoo.merge(λ3)
    del card["seal"]  # a card of before there were seals
    write_json(file, card)
    assert all(torch.equal(value, found[name]) for name, value in zoo.merge(λ3).items())


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("config.json", {"id2label": {"x": "bad"}}, "id2label is no mapping of numbers to texts"),
        ("config.json", {"id2label": {"0": "\ud83d"}}, "id2label is no mapping of numbers to texts"),
        ("config.json", {"architectures": {"x": 1}, "id2label": None}, r"unknown architecture '\(none\)'"),
        ("tokenizer.json", {"model": "x"}, "has no model of tokens"),
        ("checkpoint.json", {"origin": "x"}, "its origin is no object"),
        ("checkpoint.json", {"task": float("nan")}, "no card can say this"),
    ],
)
def test_bad_configurations_and_cards(zoo: Zoo, file: str, changes: dict[str, Any], message: str) -> None:
    path = zoo.checkpoints["bob"] / file
    content = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(content | changes))
    with pytest.raises(InputError, match=message):
        zoo.merge(λ3)


def test_heads_that_cannot_be_told_from_the_rest(zoo: Zoo) -> None:
    (zoo.checkpoints["ann"] / "checkpoint.json").write_text('{"base_model_prefix": "roberta"}')
    with pytest.raises(InputError, match=r"ann.*has no tensor roberta\.…, so heads cannot be told from the rest"):
        zoo.merge(λ3, heads="target")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda weights: weights.update(x="../ann/model.safetensors"), r"lists the file '\.\./ann/model\.safetensors'"),
        (lambda weights: weights.update(x="x" * 5000), "lists the file 'xxx"),
        (lambda weights: weights.update(x=weights[W]), "lists the tensor x, which none of its files has"),
        (lambda weights: weights.clear(), "has no tensors"),
    ],
)
def test_bad_indices(zoo: Zoo, edit: Callable[[dict[str, str]], object], message: str) -> None:
    (zoo.checkpoints["bob"] / "model.safetensors").unlink()
    AutoModelForSequenceClassification.from_pretrained(zoo.checkpoints["ann"]).save_pretrained(
        zoo.checkpoints["bob"], max_shard_size="5KB"
    )
    index = zoo.checkpoints["bob"] / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    edit(content["weight_map"])
    index.write_text(json.dumps(content))
    with pytest.raises(InputError, match=message):
        zoo.merge(λ3)


@pytest.mark.parametrize(
    ("coefficients", "message"),
    [
        ({**λ3, "eve": 1.0}, "names? the model eve"),
        ({"ann": 1.0, "bob": 1.0}, "lack the model cid"),
        ({**λ3, "bob": -1.0}, "not negative"),
        ({**λ3, "bob": float("nan")}, "finite"),
        (dict.fromkeys(λ3, 0.0), "at least one positive"),
    ],
)
def test_bad_coefficients(zoo: Zoo, coefficients: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        zoo.merge(coefficients)


def test_a_sole_model_keeps_its_own_type(zoo: Zoo) -> None:
    zoo.add("half", torch.bfloat16)
    found = zoo.merge({**dict.fromkeys(λ3, 0.0), "half": 1.0}, method="isotropic")
    for name, value in zoo.tensors("half").items():
        assert found[name].dtype == torch.bfloat16
        assert torch.equal(found[name], value)


def test_fisher_without_statistics(zoo: Zoo) -> None:
    with pytest.raises(InputError, match="needs the Fisher of every model; missing: ann, bob, cid"):
        zoo.merge(λ3, statistics=None)


def test_unknown_method(zoo: Zoo) -> None:
    with pytest.raises(InputError, match="unknown merge method 'fishr'; known: dare, fisher, isotropic"):
        zoo.merge(λ3, method="fishr")


def test_integer_tensors_are_copied_if_equal(zoo: Zoo) -> None:
    for name in zoo.checkpoints:
        zoo.change(name, lambda tensors: tensors.update(steps=torch.tensor([7, 8])))
    assert torch.equal(zoo.merge(λ3)["steps"], torch.tensor([7, 8]))
    zoo.change("bob", lambda tensors: tensors.update(steps=torch.tensor([7, 9])))
    with pytest.raises(InputError, match=r"bob.*integer tensor steps differs"):
        zoo.merge(λ3)


def test_a_pickled_checkpoint_is_not_read(zoo: Zoo) -> None:
    (zoo.checkpoints["bob"] / "model.safetensors").unlink()
    torch.save({}, zoo.checkpoints["bob"] / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"pytorch_model\.bin may be a pickle"):
        zoo.merge(λ3)


def test_paths_may_be_texts_and_coefficients_numpys(zoo: Zoo) -> None:
    wanted = zoo.merge(λ3, method="isotropic")
    merge_checkpoints(
        {name: str(directory) for name, directory in zoo.checkpoints.items()},
        str(zoo.root / "out"),
        method="fisher",
        coefficients={name: np.float32(λ) for name, λ in λ3.items()},
        statistics={name: [str(directory)] for name, directory in zoo.fishers.items()},
    )
    merge_checkpoints(
        {name: str(directory) for name, directory in zoo.checkpoints.items()},
        str(zoo.root / "out"),
        method="task_arithmetic",
        coefficients={name: np.float64(λ) for name, λ in λ3.items()},
        base=str(zoo.base()),
    )
    merge_checkpoints(zoo.checkpoints, zoo.root / "out", method="isotropic", coefficients=dict(reversed(λ3.items())))
    found = load_file(zoo.root / "out/model.safetensors")
    assert all(torch.equal(found[name], value) for name, value in wanted.items())


@pytest.mark.parametrize("value", ["x", None, [1.0, 2.0], {}])
def test_coefficients_that_are_no_numbers(zoo: Zoo, value: Any) -> None:
    with pytest.raises(InputError, match="coefficients must be numbers, one per model"):
        zoo.merge({**λ3, "bob": value})


@pytest.mark.parametrize("name", ["org/bob", "", "..", "a\0b"])
def test_names_that_no_file_can_have(zoo: Zoo, name: str) -> None:
    zoo.checkpoints = {"ann": zoo.checkpoints["ann"], name: zoo.checkpoints["bob"]}
    λ = {"ann": 0.5, name: 0.5}
    with pytest.raises(InputError, match="a file is named after every model, which this name cannot be"):
        zoo.merge(λ, method="isotropic", heads="each")
    zoo.merge(λ, method="isotropic")
    assert not (zoo.root / "merged/heads").exists()


def snapshot(root: Path) -> dict[str, bytes]:
    return {str(file.relative_to(root)): file.read_bytes() for file in sorted(root.rglob("*")) if file.is_file()}


def foreign_files(zoo: Zoo, out: Path) -> Path:
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    return out


def nested_file(zoo: Zoo, out: Path) -> Path:
    (out / "deep/er").mkdir(parents=True)
    (out / "deep/er/thesis.txt").write_text("years of work")
    return out


def a_merge_with_notes(zoo: Zoo, out: Path) -> Path:
    merge_checkpoints(zoo.checkpoints, out, method="isotropic", coefficients=λ3)
    (out / "thesis.txt").write_text("years of work")
    return out


def a_merge_with_heads_and_notes(zoo: Zoo, out: Path) -> Path:
    merge_checkpoints(zoo.checkpoints, out, method="isotropic", coefficients=λ3, heads="each")
    (out / "heads/thesis.txt").write_text("years of work")
    return out


def a_model_that_was_trained(zoo: Zoo, out: Path) -> Path:
    shutil.copytree(zoo.checkpoints["bob"], out)
    write_json(out / "checkpoint.json", {"origin": {"method": "finetuned"}})
    write_contents(out, besides="model*.safetensors")
    return out


def a_merge_with_weights_of_another(zoo: Zoo, out: Path) -> Path:
    merge_checkpoints(zoo.checkpoints, out, method="isotropic", coefficients=λ3)
    shutil.copyfile(zoo.checkpoints["bob"] / "model.safetensors", out / "adapter.safetensors")
    return out


def a_link(zoo: Zoo, out: Path) -> Path:
    out.mkdir()
    (out / "link").symlink_to(zoo.checkpoints["bob"])
    return out


def a_file(zoo: Zoo, out: Path) -> Path:
    out.write_text("years of work")
    return out


NOT_OURS: list[Callable[[Zoo, Path], Path]] = [
    *(foreign_files, nested_file, a_merge_with_notes, a_merge_with_heads_and_notes, a_model_that_was_trained),
    *(a_merge_with_weights_of_another, a_link, a_file),
    lambda zoo, _: zoo.root,
    lambda zoo, _: zoo.root / "bob",
    lambda zoo, _: zoo.root / "bob/merged",
    lambda zoo, _: zoo.root / "base",
    lambda zoo, _: zoo.root / "ann-fisher",
    lambda zoo, _: zoo.root / "ann-fisher/../cid",
]


@pytest.mark.parametrize("place", NOT_OURS)
def test_no_directory_is_lost_that_is_not_ours(zoo: Zoo, place: Callable[[Zoo, Path], Path]) -> None:
    zoo.base()
    out = place(zoo, zoo.root / "out")
    before = snapshot(zoo.root)
    with pytest.raises(
        InputError, match=r"(holds .*, which would be lost|is, holds or lies in the input .*|is a file); name"
    ):
        merge_checkpoints(
            zoo.checkpoints,
            out,
            method="task_arithmetic",
            coefficients=λ3,
            base=zoo.base(),
            statistics=zoo.fishers,
        )
    assert snapshot(zoo.root) == before


@pytest.mark.parametrize("heads", ["merge", "each"])
def test_an_earlier_merge_and_an_empty_directory_are_replaced(zoo: Zoo, heads: Any) -> None:
    out = zoo.root / "out"
    out.mkdir()
    for shards in ("1GB", "8KB", "1GB"):
        merge_checkpoints(zoo.checkpoints, out, method="isotropic", coefficients=λ3, heads=heads, max_shard_size=shards)
        assert (len(list(out.glob("*.safetensors"))) == 1) == (shards == "1GB")


def test_a_file_that_git_lfs_has_not_fetched(zoo: Zoo) -> None:
    file = zoo.checkpoints["bob"] / "model.safetensors"
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:" + "a" * 64 + "\nsize 437955512\n")
    with pytest.raises(InputError, match=r"bob.model\.safetensors: is a Git LFS pointer, .* run `git lfs pull`"):
        zoo.merge(λ3)


def test_a_norm_that_small_tensors_disprove(zoo: Zoo) -> None:
    """A card under a seal of its own that says other norms: what costs nothing to read is compared in every merge."""
    for name, directory in zoo.fishers.items():
        mapped = load_file(directory / "fisher.safetensors")
        fisher = {tensor: values.clone() for tensor, values in mapped.items()}
        write_statistic(directory, "diagonal", fisher, TensorFiles(zoo.checkpoints[name]), {})
    zoo.merge(λ3)
    card = json.loads((zoo.fishers["bob"] / "fisher.json").read_text())
    for entry in card["tensors"].values():
        entry["norm"] /= 1000
    rewrite_card(zoo.fishers["bob"], {"tensors": card["tensors"]})
    with pytest.raises(InputError, match=r"bob-fisher.*its contents are not what fisher\.json says: the norm of"):
        zoo.merge(λ3)
