"""What belongs to a model beside its weights is in every output: tokenizer, chat templates, generation, processors.

A checkpoint that is fine-tuned, new from its configuration or brought in, and what is merged of it and published.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPImageProcessor,
    GenerationConfig,
)

from stages.merging import merge_checkpoints, save_fisher
from stages.params import FinetuneSettings
from stages.publish import write
from stages.results.model_card import Publication
from stages.storage.cards import read_json, write_json
from stages.storage.checkpoint import Checkpoint
from stages.storage.source import Source
from stages.storage.statistic_files import open_statistic
from stages.tasks.data import TaskData
from stages.tasks.kinds.causal_lm.settings import CausalLM
from stages.training.finetuning import train
from stages.training.finished import bring_in, bring_in_adapter
from tests.adapters import write_adapter
from tests.language import CHAT, MARKED_CHAT, letters_tokenizer, made_task, save, tiny_llama, words
from tests.tasks.test_image_classification import image_task
from tests.test_finetune import make_task, outputs
from tests.tiny import save_base, save_vit

SETTINGS = CausalLM(source="s", file="f.csv", max_length=12, text="text")
TEMPLATES = {"default": CHAT, "tool_use": MARKED_CHAT}
# transformers refuses to save a temperature without sampling where it is new, and leaves out what is the default.
GENERATION = {
    "bos_token_id": 3,
    "do_sample": False,
    "eos_token_id": [1, 5],
    "max_length": 20,
    "pad_token_id": 0,
    "temperature": 0.6,
    "top_p": 0.9,
    "transformers_version": "4.40.0",
}
BESIDES = ("tokenizer.model", "preprocessor_config.json", "processor_config.json")  # of no use to a language model
Make = Callable[[Path, TaskData, Path], Path]


@pytest.fixture
def task(tmp_path: Path) -> TaskData:
    return made_task(tmp_path / "task", SETTINGS, {"text": words(30)})


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A Llama with all that can lie beside its weights."""
    tokenizer = letters_tokenizer(TEMPLATES, padding_side="left", model_max_length=17)  # type: ignore[arg-type]
    directory = save(tiny_llama(), tmp_path / "base", tokenizer)
    CLIPImageProcessor(size={"shortest_edge": 9}, image_mean=[0.1, 0.2, 0.3]).save_pretrained(directory)
    write_json(directory / "processor_config.json", {"processor_class": "LlavaProcessor", "patch_size": 7})
    write_json(directory / "generation_config.json", GENERATION)
    (directory / "tokenizer.model").write_bytes(b"\x0a\x0dsentencepiece")
    return directory


def fine_tuned(base: Path, task: TaskData, place: Path, **settings: Any) -> Path:
    out, curves, progress = outputs(place, "trained")
    train(base, task, FinetuneSettings(epochs=1, **settings), out, curves, progress)
    return out


def from_scratch(base: Path, task: TaskData, place: Path) -> Path:
    return fine_tuned(base, task, place, from_scratch=True)


def brought_in(base: Path, task: TaskData, place: Path) -> Path:
    (place / "brought").mkdir()
    bring_in(base, task, place / "brought")
    return place / "brought"


def adapted(base: Path, task: TaskData, place: Path) -> Path:
    return fine_tuned(base, task, place, adapter={"type": "lora", "rank": 2, "targets": ["q_proj"]})


def foreign_adapter(base: Path, directory: Path) -> Path:
    config = peft.LoraConfig(r=2, target_modules=["q_proj"])
    write_adapter(AutoModelForCausalLM, base, config, directory)
    return directory


def adapter_brought_in(base: Path, task: TaskData, place: Path) -> Path:
    out = place / "adapter-brought"
    out.mkdir()
    bring_in_adapter(foreign_adapter(base, place / "adapter"), base, task, out)
    return out


def merged(checkpoint: Path, out: Path) -> Path:
    merge_checkpoints(
        {"ann": checkpoint, "bob": checkpoint}, out, method="isotropic", coefficients={"ann": 1, "bob": 1}
    )
    return out


def published(checkpoint: Path, out: Path) -> Path:
    """The checkpoint with a Fisher, as `publish` writes it."""
    opened, fisher = Checkpoint(checkpoint), out.with_name("fisher")
    save_fisher({name: torch.ones(spec.shape) for name, spec in opened.tensors.specs.items()}, checkpoint, fisher)
    data = Source(path="s", sha256=64 * "0")
    publication = Publication("ann", SETTINGS, opened, open_statistic("diagonal", fisher), None, data, {}, {})
    out.mkdir()
    write(publication, out, {"path": "p", "sha256": 64 * "0"})
    return out


def assert_kept(out: Path, base: Path, templates: object = TEMPLATES) -> None:
    """That users of `out` have what users of `base` have."""
    for name in ("tokenizer.json", "generation_config.json", *BESIDES):
        assert (out / name).read_bytes() == (base / name).read_bytes(), name
    found, wanted = (AutoTokenizer.from_pretrained(place, local_files_only=True) for place in (out, base))
    assert found.chat_template == wanted.chat_template == templates
    messages = [{"role": "user", "content": "abc"}]
    for template in templates if isinstance(templates, dict) else (None,):
        text, own = (
            each.apply_chat_template(messages, chat_template=template, tokenize=False) for each in (found, wanted)
        )
        assert text == own != ""
    assert found.special_tokens_map == wanted.special_tokens_map
    assert (found.padding_side, found.model_max_length) == (wanted.padding_side, wanted.model_max_length)
    if (out / "adapter_config.json").is_file():
        generation, config = GenerationConfig.from_pretrained(out), AutoConfig.from_pretrained(out)
    else:
        model = AutoModelForCausalLM.from_pretrained(out, local_files_only=True)
        generation, config = model.generation_config, model.config
    assert {key: getattr(generation, key) for key in GENERATION} == GENERATION
    assert config.use_cache is True
    assert AutoImageProcessor.from_pretrained(out, local_files_only=True).image_mean == (0.1, 0.2, 0.3)


@pytest.mark.parametrize("make", [fine_tuned, from_scratch, brought_in, adapted, adapter_brought_in])
def test_all_is_in_every_output(tmp_path: Path, base: Path, task: TaskData, make: Make) -> None:
    checkpoint = make(base, task, tmp_path)
    assert_kept(checkpoint, base)
    assert_kept(merged(checkpoint, tmp_path / "merged"), base)
    assert_kept(published(checkpoint, tmp_path / "published"), base)


@pytest.mark.parametrize("make", [fine_tuned, brought_in])
@pytest.mark.parametrize("templates", [CHAT, TEMPLATES], ids=["one template", "named templates"])
def test_templates_in_the_tokenizers_configuration(
    tmp_path: Path, base: Path, task: TaskData, make: Make, templates: object
) -> None:
    """The older form, in which named templates are a list."""
    (base / "chat_template.jinja").unlink()
    shutil.rmtree(base / "additional_chat_templates")
    named = templates.items() if isinstance(templates, dict) else ()
    inner = [{"name": name, "template": template} for name, template in named] or templates
    file = base / "tokenizer_config.json"
    write_json(file, read_json(file) | {"chat_template": inner})
    checkpoint = make(base, task, tmp_path)
    assert_kept(checkpoint, base, templates)
    assert_kept(merged(checkpoint, tmp_path / "merged"), base, templates)
    assert_kept(published(checkpoint, tmp_path / "published"), base, templates)


OWN = "{% for message in messages %}own {{ message['content'] }}{% endfor %}"
OWN_GENERATION = {"do_sample": True, "eos_token_id": [1, 2], "temperature": 0.3}


@pytest.mark.parametrize("older", [True, False])
@pytest.mark.parametrize("foreign", [True, False])
def test_what_an_adapter_has_of_its_own_is_not_the_bases(
    tmp_path: Path, base: Path, task: TaskData, older: bool, foreign: bool
) -> None:
    """Its tokenizer with a chat template, where transformers reads another file first; and how it writes.

    Args:
        tmp_path, base, task: fixtures.
        older: whether the template is in tokenizer_config.json, and the base has the map that such tokenizers have.
        foreign: whether the adapter is merged as it is, without having been brought in.
    """
    adapter = foreign_adapter(base, tmp_path / "adapter")
    letters_tokenizer(OWN, pad_token="g").save_pretrained(adapter)
    write_json(adapter / "generation_config.json", OWN_GENERATION)
    if older:
        (adapter / "chat_template.jinja").unlink()
        file = adapter / "tokenizer_config.json"
        write_json(file, read_json(file) | {"chat_template": OWN})
        write_json(base / "special_tokens_map.json", {"pad_token": "h", "eos_token": "</s>"})
    wanted = AutoTokenizer.from_pretrained(adapter, local_files_only=True)
    assert (wanted.chat_template, wanted.pad_token) == (OWN, "g")
    out = tmp_path / "out"
    out.mkdir()
    bring_in_adapter(adapter, base, task, out)
    checkpoint = adapter if foreign else out
    for place in (out, merged(checkpoint, tmp_path / "merged"), published(out, tmp_path / "published")):
        found = AutoTokenizer.from_pretrained(place, local_files_only=True)
        assert (found.chat_template, found.pad_token) == (OWN, "g")
        assert read_json(place / "generation_config.json") == OWN_GENERATION
        for name in BESIDES:
            assert (place / name).read_bytes() == (base / name).read_bytes(), name


@pytest.mark.parametrize("make", [fine_tuned, from_scratch, brought_in])
def test_generation_by_an_old_configuration(tmp_path: Path, base: Path, task: TaskData, make: Make) -> None:
    """Before there was generation_config.json, config.json said it; transformers saves that file without it."""
    (base / "generation_config.json").unlink()
    own = {"num_beams": 4, "temperature": 0.5, "max_length": 77}
    write_json(base / "config.json", read_json(base / "config.json") | own)
    checkpoint = make(base, task, tmp_path)
    for place in (base, checkpoint, merged(checkpoint, tmp_path / "merged")):
        found = AutoModelForCausalLM.from_pretrained(place, local_files_only=True).generation_config
        assert {key: getattr(found, key) for key in own} == own


def test_a_merge_of_others_checkpoints_has_the_targets_files_as_they_are(tmp_path: Path, base: Path) -> None:
    """Named templates, and an old configuration too: nothing is loaded and saved."""
    other = save(tiny_llama(1), tmp_path / "other")
    checkpoints = {"ann": base, "bob": other}
    merge_checkpoints(checkpoints, tmp_path / "out", method="isotropic", coefficients={"ann": 1, "bob": 1})
    for file in base.rglob("*"):
        if file.is_file() and file.suffix != ".safetensors":
            assert (tmp_path / "out" / file.relative_to(base)).read_bytes() == file.read_bytes(), file
    assert_kept(tmp_path / "out", base)


@pytest.mark.parametrize("make", [fine_tuned, brought_in])
def test_an_image_processor(tmp_path: Path, make: Make) -> None:
    """Another than the model's usual one, with its own numbers; and what reads it beside texts."""
    save_vit(tmp_path / "vit", num_channels=3)
    processor = CLIPImageProcessor(
        size={"shortest_edge": 8},
        crop_size={"height": 8, "width": 8},
        image_mean=[0.4, 0.5, 0.6],
        image_std=[0.3, 0.2, 0.1],
        resample=0,
        rescale_factor=0.01,
    )
    processor.save_pretrained(tmp_path / "vit")
    beside = {"processor_config.json": {"processor_class": "LlavaProcessor"}, "special_tokens_map.json": {"a": "b"}}
    for name, content in beside.items():
        write_json(tmp_path / "vit" / name, content)
    checkpoint = make(tmp_path / "vit", image_task(tmp_path / "stripes"), tmp_path)
    for place in (checkpoint, merged(checkpoint, tmp_path / "merged")):
        found = AutoImageProcessor.from_pretrained(place, local_files_only=True)
        assert found.to_dict() == processor.to_dict()
        assert {name: read_json(place / name) for name in beside} == beside


def test_a_classifier_of_a_language_model(tmp_path: Path) -> None:
    """It writes nothing, but what is made of it may."""
    save_base(tmp_path / "base")
    write_json(tmp_path / "base/generation_config.json", GENERATION)
    (tmp_path / "base/chat_template.jinja").write_text(CHAT)
    out = fine_tuned(tmp_path / "base", make_task(tmp_path / "reviews", ["bad", "good"]), tmp_path)
    for name in ("generation_config.json", "chat_template.jinja"):
        assert (out / name).read_bytes() == (tmp_path / "base" / name).read_bytes(), name
    # transformers leaves in tokenizer.json what the last batch was cut to, and sets it anew in every call.
    found, wanted = (read_json(place / "tokenizer.json") for place in (out, tmp_path / "base"))
    assert found | {"truncation": None} == wanted


def test_what_is_no_language_model_has_no_generation_config(tmp_path: Path) -> None:
    save_vit(tmp_path / "vit")
    out = brought_in(tmp_path / "vit", image_task(tmp_path / "stripes"), tmp_path)
    assert not (out / "generation_config.json").exists()
