"""The live model of a search among adapters has what a merge of them writes."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from stages.merging import merge_checkpoints
from stages.merging.ingredients import Ingredients
from stages.merging.merged_tensors import merging_at
from stages.merging.methods.isotropic.options import Isotropic
from stages.searching.live_model import LiveModel
from stages.storage.checkpoint import Checkpoint
from stages.tasks.data import TaskData
from stages.tasks.kinds import metric_named
from stages.tasks.kinds.causal_lm.kind import KIND
from stages.tasks.kinds.causal_lm.settings import CausalLM
from tests.adapters import logits, write_adapter
from tests.language import in_order, letters_tokenizer, made_task, save, tiny_llama, words

QV = ["q_proj", "v_proj"]
ONE: dict[str, Any] = {"r": 4, "target_modules": QV}
VECTORS: dict[str, Any] = {"target_modules": [*QV, "down_proj"], "feedforward_modules": ["down_proj"]}
PAIRS: dict[str, list[Any]] = {
    "ranks": [peft.LoraConfig(**ONE), peft.LoraConfig(r=16, target_modules=["q_proj", "o_proj"])],
    "embeddings of one": [peft.LoraConfig(**ONE), peft.LoraConfig(r=4, target_modules=["embed_tokens"])],
    "head of the target": [peft.LoraConfig(r=4, target_modules=["lm_head"]), peft.LoraConfig(**ONE)],
    "vectors": [peft.IA3Config(**VECTORS), peft.IA3Config(**VECTORS)],
}


@pytest.mark.parametrize("pair", PAIRS)
def test_the_live_model_is_the_merge(tmp_path: Path, pair: str) -> None:
    save(tiny_llama(0, tied=True), tmp_path / "base")
    directories = {name: tmp_path / name for name in ("ann", "bob")}
    for seed, (directory, config) in enumerate(zip(directories.values(), PAIRS[pair], strict=True)):
        letters_tokenizer().save_pretrained(directory)
        write_adapter(AutoModelForCausalLM, tmp_path / "base", config, directory, seed=seed)
    examples = {"text": [in_order(word) for word in words(12)]}
    task: TaskData = made_task(tmp_path / "task", CausalLM(source="s", file="f", text="text", max_length=16), examples)
    ingredients = Ingredients(directories, Isotropic())
    for checkpoint in ingredients.checkpoints.values():
        checkpoint.card = {"labels": []}
    live = LiveModel(ingredients, "merge", {task: "ann"}, metric_named("perplexity"))
    live.load(merging_at(ingredients, {"ann": 1, "bob": 9}))  # of which nothing may be left
    for λ in ({"ann": 1, "bob": 3}, {"ann": 0, "bob": 1}):
        live.load(merging_at(ingredients, λ))
        merge_checkpoints(directories, tmp_path / "out", method="isotropic", coefficients=λ)
        merged = KIND.load_model(tmp_path / "out", [])
        torch.testing.assert_close(logits(live._body), logits(merged), rtol=1e-4, atol=1e-5)
        assert Checkpoint(tmp_path / "out").tensors.specs
        (score,) = live.scores()
        assert score > 0
