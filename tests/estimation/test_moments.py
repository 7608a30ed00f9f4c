"""Second moments of others as a Fisher: files as AdamW's state gives them, and what is refused."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from stages.estimation.moments import take_moments
from stages.estimation.verification import verified_fisher
from stages.merging import Fisher, merge_checkpoints
from stages.running.errors import InputError
from stages.storage.cards import read_json
from stages.storage.digests import tree_sha256
from stages.storage.source import FisherSource
from stages.storage.tensors import TensorFiles, TensorWriter, fingerprint
from tests.cards import rewrite_card
from tests.language import tiny_gpt2, tiny_llama

NAME = "exp_avg_sq.safetensors"
Q = "model.layers.0.self_attn.q_proj.weight"
Tensors = dict[str, Tensor]


def trained(model: Any, checkpoint: Path, *, seed: int = 0) -> Tensors:
    """Train a model by AdamW and save it. Returns the optimizer's second moments, by the model's parameters' names."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95))
    generator = torch.Generator().manual_seed(seed)
    for _ in range(4):
        ids = torch.randint(0, model.config.vocab_size, (3, 7), generator=generator)
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(checkpoint)
    return {name: optimizer.state[parameter]["exp_avg_sq"].clone() for name, parameter in model.named_parameters()}


def published(directory: Path, moments: Tensors, name: str = NAME) -> Path:
    directory.mkdir(exist_ok=True)
    save_file(moments, directory / name, metadata={"format": "pt"})
    return directory


def in_shards(directory: Path, moments: Tensors, *, index: bool) -> Path:
    """The same in several files, with or without the index."""
    directory.mkdir()
    save_file(moments, directory / NAME)
    specs = TensorFiles(directory, "exp_avg_sq").specs
    (directory / NAME).unlink()
    with TensorWriter(directory, "exp_avg_sq", specs, max_shard_bytes=4000) as writer:
        for name, values in moments.items():
            writer.write(name, values)
    if not index:
        (directory / f"{NAME}.index.json").unlink()
    assert len(list(directory.glob("*-of-*"))) > 2
    return directory


def source(directory: Path, file: str = NAME) -> FisherSource:
    return FisherSource(path=str(directory), sha256=tree_sha256(directory), file=file, unverified=True)


@pytest.fixture
def llama(tmp_path: Path) -> tuple[Path, Tensors]:
    """A trained Llama's checkpoint, and its moments."""
    return tmp_path / "llama", trained(tiny_llama(), tmp_path / "llama")


def test_adams_moments_become_a_fisher_as_they_are(tmp_path: Path, llama: tuple[Path, Tensors]) -> None:
    checkpoint, moments = llama
    place = published(tmp_path / "theirs", moments)
    (place / "notes.txt").write_text("no moments")
    take_moments(source(place), checkpoint, tmp_path / "fisher")
    found = load_file(tmp_path / "fisher/fisher.safetensors")
    assert found.keys() == moments.keys()
    assert all(torch.equal(found[name], values) for name, values in moments.items())
    card = read_json(tmp_path / "fisher/fisher.json")
    assert (card["estimator"], card["unverified"], card["dtype"]) == ("given", True, "float32")
    assert card["checkpoint"] == fingerprint(TensorFiles(checkpoint))
    assert card["origin"] == {
        "sha256": tree_sha256(place),
        "file": NAME,
        "files": {NAME: tree_sha256(place / NAME)},
    }
    assert "likelihood" not in card
    verified_fisher("ann", checkpoint, tmp_path / "fisher")


@pytest.mark.parametrize(
    ("index", "file"),
    [
        (True, NAME),
        (True, f"{NAME}.index.json"),
        (True, "exp_avg_sq-00001-of-00003.safetensors"),
        (False, NAME),
        (False, "exp_avg_sq-00001-of-00003.safetensors"),
    ],
)
def test_moments_in_shards(tmp_path: Path, llama: tuple[Path, Tensors], index: bool, file: str) -> None:
    checkpoint, moments = llama
    place = in_shards(tmp_path / "theirs", moments, index=index)
    if "-of-" in file:
        file = min(entry.name for entry in place.glob("*-of-*"))
        save_file({"other": torch.ones(3)}, place / NAME)  # which is not the one that is named
    take_moments(source(place, file), checkpoint, tmp_path / "fisher")
    found = load_file(tmp_path / "fisher/fisher.safetensors")
    assert found.keys() == moments.keys()
    assert all(torch.equal(found[name], values) for name, values in moments.items())
    shards = {entry.name: tree_sha256(entry) for entry in place.glob("*-of-*")}
    assert read_json(tmp_path / "fisher/fisher.json")["origin"]["files"] == shards


def test_in_a_folder_of_a_source_and_in_a_single_file(tmp_path: Path, llama: tuple[Path, Tensors]) -> None:
    checkpoint, moments = llama
    place = published(tmp_path / "theirs", {}, "else.safetensors")
    published(place / "optimizer", moments)
    take_moments(source(place, f"optimizer/{NAME}"), checkpoint, tmp_path / "a")
    take_moments(source(place / "optimizer" / NAME), checkpoint, tmp_path / "b")
    assert (tmp_path / "a/fisher.safetensors").read_bytes() == (tmp_path / "b/fisher.safetensors").read_bytes()


def renamed(pattern: str) -> Callable[[Tensors], Tensors]:
    return lambda moments: {pattern.format(name): values for name, values in moments.items()}


def wrapped_within(moments: Tensors) -> Tensors:
    """As torch names what is compiled or sharded layer by layer."""
    return {
        name.replace("layers.0.", "layers.0._fsdp_wrapped_module.").replace("layers.1.", "layers.1._orig_mod."): values
        for name, values in moments.items()
    }


SPELLINGS: dict[str, Callable[[Tensors], Tensors]] = {
    "module": renamed("module.{}"),
    "compiled": renamed("_orig_mod.{}"),
    "both": renamed("module._orig_mod.{}"),
    "a module's attribute": renamed("model.{}"),
    "sharded by layers": wrapped_within,
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("tied", [False, True])
def test_names_behind_wrappers(tmp_path: Path, spelling: str, tied: bool) -> None:
    moments = trained(tiny_llama(tied=tied), tmp_path / "llama")
    place = published(tmp_path / "theirs", SPELLINGS[spelling](moments))
    take_moments(source(place), tmp_path / "llama", tmp_path / "fisher")
    found = load_file(tmp_path / "fisher/fisher.safetensors")
    assert found.keys() == moments.keys()
    assert all(torch.equal(found[name], values) for name, values in moments.items())


def test_names_that_transformers_loads_to_the_same_place(tmp_path: Path) -> None:
    """GPT-2 as it was first published: without the body's prefix, and with masks that are no weights."""
    moments = trained(tiny_gpt2(), tmp_path / "gpt2")
    weights = load_file(tmp_path / "gpt2/model.safetensors")
    old = {name.removeprefix("transformer."): values for name, values in weights.items()}
    save_file(old | {"h.0.attn.masked_bias": torch.tensor(-1e4)}, tmp_path / "gpt2/model.safetensors", {"format": "pt"})
    take_moments(source(published(tmp_path / "theirs", moments)), tmp_path / "gpt2", tmp_path / "fisher")
    found = load_file(tmp_path / "fisher/fisher.safetensors")
    assert found.keys() == old.keys()
    assert all(torch.equal(found[name.removeprefix("transformer.")], values) for name, values in moments.items())
    verified_fisher("ann", tmp_path / "gpt2", tmp_path / "fisher")


def test_a_copy_of_a_tied_parameter_counts_once(tmp_path: Path) -> None:
    moments = trained(tiny_llama(tied=True), tmp_path / "llama")
    head = moments["model.embed_tokens.weight"].clone()
    place = published(tmp_path / "theirs", moments | {"lm_head.weight": head})
    take_moments(source(place), tmp_path / "llama", tmp_path / "fisher")
    assert load_file(tmp_path / "fisher/fisher.safetensors").keys() == moments.keys()
    published(place, moments | {"lm_head.weight": head * 2})
    with pytest.raises(InputError, match=r"tensor lm_head\.weight is of no parameter of .*model\.safetensors"):
        take_moments(source(place), tmp_path / "llama", tmp_path / "other")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_type_is_theirs(tmp_path: Path, llama: tuple[Path, Tensors], dtype: torch.dtype) -> None:
    moments = {name: (values * 1e4).to(dtype) for name, values in llama[1].items()}
    take_moments(source(published(tmp_path / "theirs", moments)), llama[0], tmp_path / "fisher")
    found = load_file(tmp_path / "fisher/fisher.safetensors")
    assert all(torch.equal(found[name], values) for name, values in moments.items())
    assert read_json(tmp_path / "fisher/fisher.json")["dtype"] == str(dtype).removeprefix("torch.")


def spoilt(change: Callable[[Tensors], object]) -> Callable[[Path, Tensors], object]:
    def spoil(place: Path, moments: Tensors) -> None:
        copies = {name: values.clone() for name, values in moments.items()}
        change(copies)
        published(place, copies)

    return spoil


def all_zero(moments: Tensors) -> None:
    for values in moments.values():
        values.zero_()


def cut_off(place: Path, moments: Tensors) -> None:
    published(place, moments)
    (place / NAME).write_bytes((place / NAME).read_bytes()[:-50])


def a_shard_missing(place: Path, moments: Tensors) -> None:
    place.rmdir()
    max(in_shards(place, moments, index=False).glob("*-of-*")).unlink()


DAMAGE: dict[str, tuple[Callable[[Path, Tensors], object], str]] = {
    "a tensor missing": (spoilt(lambda m: m.pop(Q)), rf"{NAME}: lacks the parameter {Q} of .*model\.safetensors"),
    "another model's": (
        spoilt(lambda m: m.update({"model.layers.9.x": m.pop(Q)})),
        rf"lacks the parameter {Q} of .* but has model\.layers\.9\.x, which is of no parameter",
    ),
    "a tensor too many": (
        spoilt(lambda m: m.update(step=torch.tensor(4.0))),
        r"tensor step is of no parameter of .*; give the moments of this checkpoint's parameters, and of nothing else",
    ),
    "another shape": (
        spoilt(lambda m: m.update({Q: torch.ones(3, 16)})),
        rf"tensor {Q} is float32 \[3, 16\], but {Q} in .*model\.safetensors is a floating-point \[16, 16\]",
    ),
    "integers": (spoilt(lambda m: m.update({Q: torch.ones(16, 16).int()})), rf"tensor {Q} is int32 \[16, 16\], but"),
    "negative": (spoilt(lambda m: m[Q][2].fill_(-1e-9)), rf"tensor {Q} has a negative entry"),
    "infinite": (spoilt(lambda m: m[Q][2].fill_(np.inf)), rf"tensor {Q} has an infinite entry"),
    "NaN": (spoilt(lambda m: m[Q][2, 3].fill_(np.nan)), rf"tensor {Q} has a NaN entry"),
    "zero": (spoilt(all_zero), r"is zero everywhere, as the moments of a model that was never trained are"),
    "names of two meanings": (
        spoilt(lambda m: m.update({f"_orig_mod.{Q}": torch.ones(16, 16)})),
        rf"tensor _orig_mod\.{Q} is of no parameter",
    ),
    "a pickle": (
        lambda place, moments: (place / NAME).write_bytes(pickle.dumps({"a": 1})),
        rf"{NAME}: not a whole safetensors file",
    ),
    "cut off": (cut_off, rf"{NAME}: not a whole safetensors file"),
    "a shard missing": (a_shard_missing, r"exp_avg_sq-.*-of-.*\.safetensors: not found, and there is no .*index\.json"),
    "no such file": (
        lambda place, moments: published(place, moments, "exp_avg.safetensors"),
        r"the source has no files that match exp_avg_sq\.safetensors",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_moments_that_cannot_be_right_are_refused(tmp_path: Path, llama: tuple[Path, Tensors], damage: str) -> None:
    spoil, message = DAMAGE[damage]
    (tmp_path / "theirs").mkdir()
    spoil(tmp_path / "theirs", llama[1])
    with pytest.raises(InputError, match=message) as caught:
        take_moments(source(tmp_path / "theirs"), llama[0], tmp_path / "fisher")
    assert "\n" not in str(caught.value)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["llama", "theirs"]


def test_no_merge_takes_them_beside_another_checkpoint(tmp_path: Path, llama: tuple[Path, Tensors]) -> None:
    take_moments(source(published(tmp_path / "theirs", llama[1])), llama[0], tmp_path / "fisher")
    tiny_llama(seed=9).save_pretrained(tmp_path / "other")
    with pytest.raises(InputError, match=r"fisher\.json: belongs to the checkpoint"):
        verified_fisher("ann", tmp_path / "other", tmp_path / "fisher")


def test_a_damaged_checkpoint_is_refused(tmp_path: Path, llama: tuple[Path, Tensors]) -> None:
    (llama[0] / "checkpoint.json").write_text('{"fingerprint": "0000", "origin": {}}')
    with pytest.raises(InputError, match=r"its contents are not what checkpoint\.json says"):
        take_moments(source(published(tmp_path / "theirs", llama[1])), llama[0], tmp_path / "fisher")


@pytest.mark.parametrize("normalize", ["l2", "none"])
def test_a_merge_with_them_against_float64(tmp_path: Path, normalize: Any) -> None:
    """Matena & Raffel's equation 5 with a floor for the target, in numpy; one card says nothing of this."""
    λ, floor = {"ann": 0.3, "bob": 0.7}, 1e-6
    checkpoints, fishers, moments = {}, {}, {}
    for seed, name in enumerate(λ):
        checkpoints[name], fishers[name] = tmp_path / name, tmp_path / f"{name}-fisher"
        moments[name] = trained(tiny_llama(seed), checkpoints[name], seed=seed)
        take_moments(source(published(tmp_path / f"{name}-moments", moments[name])), checkpoints[name], fishers[name])
    rewrite_card(fishers["bob"], {"estimator": "exact", "unverified": False, "origin": {}})
    merge_checkpoints(
        checkpoints,
        tmp_path / "out",
        method=Fisher(floor=floor, normalize=normalize),
        coefficients=λ,
        statistics=fishers,
        precision="float64",
    )
    weights = {name: load_file(place / "model.safetensors") for name, place in checkpoints.items()}
    squares = {name: [v.double().numpy() ** 2 for v in values.values()] for name, values in moments.items()}
    scale = {
        name: 1 / np.sqrt(sum(square.sum() for square in squares[name])) if normalize == "l2" else 1.0 for name in λ
    }
    found = load_file(tmp_path / "out/model.safetensors")
    for tensor, merged in found.items():
        weighted = {
            n: λ[n] * scale[n] * np.maximum(moments[n][tensor].double().numpy(), floor if n == "ann" else 0) for n in λ
        }
        wanted = sum(weighted[n] * weights[n][tensor].double().numpy() for n in λ) / sum(weighted.values())
        np.testing.assert_allclose(merged.double().numpy(), wanted, rtol=2e-7, atol=1e-9)
    origin = read_json(tmp_path / "out/checkpoint.json")["origin"]
    assert origin["unverified"] == ["ann"]
    assert origin["models"]["ann"]["fisher"]["estimator"] == "given"
    text = (tmp_path / "out/README.md").read_text()
    assert "Nothing binds the Fisher of ann to its checkpoint" in text
    assert "| fisher | ann | given | – | – | – |" in text


def test_a_merge_of_verified_fishers_says_nothing_of_it(tmp_path: Path, llama: tuple[Path, Tensors]) -> None:
    take_moments(source(published(tmp_path / "theirs", llama[1])), llama[0], tmp_path / "fisher")
    rewrite_card(tmp_path / "fisher", {"unverified": False})
    merge_checkpoints(
        {"ann": llama[0]}, tmp_path / "out", coefficients={"ann": 1}, statistics={"ann": tmp_path / "fisher"}
    )
    assert "unverified" not in read_json(tmp_path / "out/checkpoint.json")["origin"]
    assert "Nothing binds" not in (tmp_path / "out/README.md").read_text()


def test_its_card_has_the_norms_that_merges_take(tmp_path: Path, llama: tuple[Path, Tensors]) -> None:
    take_moments(source(published(tmp_path / "theirs", llama[1])), llama[0], tmp_path / "fisher")
    _, fisher = verified_fisher("ann", llama[0], tmp_path / "fisher")
    assert fisher.norm(Q) == pytest.approx(float(np.linalg.norm(llama[1][Q].double().numpy())))
