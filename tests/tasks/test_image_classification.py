"""Image classification: the model's input, its training, its Fisher, its merges."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    Dinov2Config,
    Dinov2ForImageClassification,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

from stages.estimation.estimate import estimate
from stages.estimation.passes import estimated_statistics
from stages.params import FinetuneSettings, FisherSettings
from stages.results.evaluation import predict
from stages.running.errors import InputError
from stages.storage.cards import read_json, write_json
from stages.storage.checkpoint_files import ADAM
from stages.storage.digests import tree_sha256
from stages.storage.tensors import TensorFiles, fingerprint
from stages.tasks.arrow import temporary_rows
from stages.tasks.data import TaskData
from stages.tasks.encoding import encode
from stages.tasks.kinds.image_classification.images import image_columns, images
from stages.tasks.kinds.image_classification.kind import KIND, ImageProcessor
from stages.tasks.kinds.image_classification.settings import ImageClassification, Images
from stages.training.finetuning import train
from stages.training.finished import bring_in
from tests.curvature.reference import assert_same_fisher, reference_fisher
from tests.project import ROOT
from tests.tasks.in_memory import write_task
from tests.test_finetune import make_task, outputs
from tests.tiny import save_image_processor, save_vit, stripes, tiny_vit

LABELS = ["across", "down"]


def image_task(directory: Path, seed: int = 0) -> TaskData:
    found, labels = stripes(60, seed)
    frame = image_columns([image[:, :, None] for image in found], pd.RangeIndex(60))
    frame = frame.assign(label=[LABELS.index(label) for label in labels])
    where = Images(pixels=[8, 8])
    settings = ImageClassification(source="s", file="f.csv", labels=LABELS, image=where)
    directory.mkdir(parents=True)
    write_task(directory, settings, {"train": frame[:40], "validation": frame[40:50], "test": frame[50:]}, {})
    return TaskData.open(directory)


@pytest.fixture
def task(tmp_path: Path) -> TaskData:
    return image_task(tmp_path / "stripes")


@pytest.fixture
def vit(tmp_path: Path) -> Path:
    save_vit(tmp_path / "vit")
    write_json(tmp_path / "vit" / "checkpoint.json", {"labels": LABELS, "task": "stripes", "origin": {}})
    return tmp_path / "vit"


def model_input(task: TaskData) -> torch.Tensor:
    """What the test split's images are to a model of grey images, from the definition: −1 to 1."""
    values = np.stack([image[:, :, 0] for image in images(task.read("test"))])[:, None]
    return torch.tensor((values / 255 - 0.5) / 0.5, dtype=torch.float32)


def in_file(checkpoint: Path) -> dict[str, str]:
    """Parameter → its name in the checkpoint's file, found by the values, which are all different."""
    names = {tensor.numpy().tobytes(): name for name, tensor in load_file(checkpoint / "model.safetensors").items()}
    model = KIND.load_model(checkpoint, LABELS)
    return {name: names[parameter.detach().numpy().tobytes()] for name, parameter in model.named_parameters()}


def test_the_model_reads_scaled_pixels(vit: Path, task: TaskData) -> None:
    processor = KIND.load_processor(vit)
    encoded = KIND.encode(processor, task.read("test"), task, None, seed=0)
    batch = KIND.collator(processor, None)([{key: values[row] for key, values in encoded.items()} for row in range(10)])
    assert batch["pixel_values"].dtype == torch.float32
    torch.testing.assert_close(batch["pixel_values"], model_input(task))
    assert batch["labels"].tolist() == task.read("test")["label"].tolist()


def test_colours_and_sizes_become_the_models(tmp_path: Path) -> None:
    """A processor that resizes, crops and normalises, against Pillow and the definition."""
    save_vit(tmp_path / "vit", num_channels=3)
    steps = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": 10},
        "crop_size": {"height": 8, "width": 8},
        "resample": 2,
        "image_mean": [0.1, 0.2, 0.3],
        "image_std": [0.5, 0.6, 0.7],
    }
    write_json(tmp_path / "vit" / "preprocessor_config.json", steps)
    processor = KIND.load_processor(tmp_path / "vit")
    random = np.random.default_rng(0)
    colour, grey = (random.integers(0, 256, (20, 20, channels)).astype(np.uint8) for channels in (3, 1))
    found = processor([colour, grey])
    for image, values in zip((colour, np.repeat(grey, 3, axis=2)), found, strict=True):
        resized = np.asarray(Image.fromarray(image).resize((10, 10), Image.Resampling.BILINEAR))[1:9, 1:9]
        wanted = (resized / 255 - [0.1, 0.2, 0.3]) / [0.5, 0.6, 0.7]
        np.testing.assert_allclose(values.permute(1, 2, 0).numpy(), wanted, atol=0.5 / 255 / 0.5 + 1e-5)
    save_vit(tmp_path / "grey")
    luma = (colour @ np.array([299, 587, 114]) / 1000).clip(0, 255)[:8, :8]
    (values,) = KIND.load_processor(tmp_path / "grey")([colour[:8, :8]])
    np.testing.assert_allclose((values[0].numpy() / 2 + 0.5) * 255, luma, atol=1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "its image processor cannot be loaded"),
        ("{", "its image processor cannot be loaded"),
        ("[]", "its image processor cannot be loaded"),
        ('{"image_processor_type": "NoSuchProcessor"}', "its image processor cannot be loaded"),
    ],
)
def test_broken_processors(vit: Path, content: str | None, message: str) -> None:
    file = vit / "preprocessor_config.json"
    if content is None:
        file.unlink()
    else:
        file.write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        KIND.load_processor(vit)
    assert "\n" not in str(caught.value)


def test_a_checkpoints_code_is_not_run(vit: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    for module in ("modeling_x", "configuration_x", "processing_x"):
        (vit / f"{module}.py").write_text(f"open({str(canary)!r}, 'w')\nclass X: pass\n")
    config, steps = (read_json(vit / name) for name in ("config.json", "preprocessor_config.json"))
    models = {"AutoConfig": "configuration_x.X", "AutoModelForImageClassification": "modeling_x.X"}
    write_json(vit / "config.json", config | {"auto_map": models, "model_type": "own"})
    own = {"image_processor_type": "X", "auto_map": {"AutoImageProcessor": "processing_x.X"}}
    write_json(vit / "preprocessor_config.json", steps | own)
    with pytest.raises(InputError, match="cannot be loaded as a classifier"):
        KIND.load_model(vit, LABELS)
    with pytest.raises(InputError, match="its image processor cannot be loaded"):
        KIND.load_processor(vit)
    assert not canary.exists()


@pytest.mark.parametrize("name", ["classifier.bias", "vit.layernorm.weight"])
def test_no_tensor_may_be_missing(vit: Path, name: str) -> None:
    tensors = load_file(vit / "model.safetensors")
    del tensors[name]
    save_file(tensors, vit / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=f"lacks the tensor {name}"):
        KIND.load_model(vit, LABELS)


def test_images_of_another_size_than_the_models(vit: Path, task: TaskData) -> None:
    save_image_processor(vit, size=12)
    with pytest.raises(InputError, match="makes images of 12 × 12 pixels, but the model needs 8 × 8"):
        encode(KIND, KIND.load_processor(vit), task.rows("test"), task, None, seed=0)


def test_all_images_of_a_split_come_out_alike_or_are_refused(tmp_path: Path) -> None:
    """Also where those that differ are read long after the others."""
    images = [np.zeros((8, 8, 1), dtype=np.uint8)] * 1000 + [np.zeros((12, 12, 1), dtype=np.uint8)] * 10
    frame = image_columns(images, pd.RangeIndex(len(images))).assign(label=0)
    rows = temporary_rows([frame[:600], frame[600:]])
    steps = ViTImageProcessorPil(do_resize=False, do_rescale=False, do_normalize=False)
    processor = ImageProcessor(tmp_path, steps, 1, None)
    with pytest.raises(InputError, match="makes images of 8 × 8, 12 × 12 pixels, but the model needs one size"):
        encode(KIND, processor, rows, cast(Any, SimpleNamespace(name="it", directory=tmp_path)), None, seed=0)


def scratch(tmp_path: Path, task: TaskData, name: str, **settings: Any) -> Path:
    """A model trained from a tiny ViT's configuration."""
    base = tmp_path / "config"
    if not base.exists():
        tiny_vit().config.save_pretrained(base)
        save_image_processor(base)
    out, curves, progress = outputs(tmp_path, name)
    chosen = {"epochs": 1, "batch_size": 8, "learning_rate": 5e-3, "from_scratch": True} | settings
    train(base, task, FinetuneSettings.model_validate(chosen), out, curves, progress, keep_moments=True)
    return out


def test_training_from_scratch_learns_and_is_of_the_seed(tmp_path: Path, task: TaskData) -> None:
    learnt = scratch(tmp_path, task, "learnt", epochs=15)
    card = read_json(learnt / "checkpoint.json")
    assert card["origin"]["validation_accuracy"] > 0.8
    assert card["origin"]["from_scratch"] is True
    assert (card["base_model_prefix"], card["labels"]) == ("vit", LABELS)
    assert read_json(learnt / "preprocessor_config.json")["image_processor_type"] == "ViTImageProcessor"
    found = [scratch(tmp_path, task, name, seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1))]
    first, again, other = map(tree_sha256, found)
    assert first == again != other
    # What others load it with gives the same predictions.
    model = ViTForImageClassification.from_pretrained(learnt).eval()
    with torch.no_grad():
        wanted = model(pixel_values=model_input(task)).logits.numpy()
    predictions, _ = predict(learnt, [task, make_task(tmp_path / "texts", LABELS)])
    assert list(predictions) == ["stripes"]  # not the texts, though their labels are the same
    np.testing.assert_allclose(predictions["stripes"].outputs, wanted, atol=1e-5)


def test_a_base_without_weights_needs_to_be_named_as_such(tmp_path: Path, task: TaskData) -> None:
    with pytest.raises(InputError, match=r"it has no weights .*`finetune: \{from_scratch: true\}`"):
        scratch(tmp_path, task, "out", from_scratch=False)


def test_cards_of_models_that_are_not_from_scratch_do_not_speak_of_it(
    tmp_path: Path, vit: Path, task: TaskData
) -> None:
    out, curves, progress = outputs(tmp_path)
    train(vit, task, FinetuneSettings(epochs=1), out, curves, progress)
    assert "from_scratch" not in read_json(out / "checkpoint.json")["origin"]


def test_a_finished_checkpoint_is_brought_in(tmp_path: Path, vit: Path, task: TaskData) -> None:
    (tmp_path / "out").mkdir()
    bring_in(vit, task, tmp_path / "out")
    assert fingerprint(TensorFiles(tmp_path / "out")) == fingerprint(TensorFiles(vit))
    assert len(predict(tmp_path / "out", [task])[0]["stripes"].outputs) == 10


def test_its_fisher_is_exact_and_has_the_names_of_the_file(tmp_path: Path, vit: Path, task: TaskData) -> None:
    settings = FisherSettings(examples=None, batch_size=16)
    estimate("diagonal", vit, task, settings, tmp_path / "fisher")
    values = np.stack([image[:, :, 0] for image in images(task.read("train"))])[:, None]
    batch = {"pixel_values": torch.tensor((values / 255 - 0.5) / 0.5)}
    wanted = reference_fisher(ViTForImageClassification.from_pretrained(vit), [batch])
    names = in_file(vit)
    found = load_file(tmp_path / "fisher" / "fisher.safetensors")
    assert found.keys() == TensorFiles(vit).specs.keys()
    assert_same_fisher(found, {names[name]: value for name, value in wanted.items()}, tolerance=1e-4)
    assert read_json(tmp_path / "fisher" / "fisher.json")["likelihood"] == "categorical"


def test_its_input_factors_are_of_its_inputs(tmp_path: Path, vit: Path, task: TaskData) -> None:
    settings = FisherSettings(examples=None, batch_size=16)
    model = KIND.load_model(vit, LABELS).double()
    seen: list[torch.Tensor] = []
    model.classifier.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0]))
    values = np.stack([image[:, :, 0] for image in images(task.read("train"))])[:, None]
    with torch.no_grad():
        model(pixel_values=torch.tensor((values / 255 - 0.5) / 0.5))
    with estimated_statistics(vit, task, settings, tmp_path / "out", ["kfac"]) as estimate_:
        assert estimate_ is not None
        factors = estimate_.statistics
    assert factors.input_factors.keys() < TensorFiles(vit).specs.keys()
    assert factors.input_factors.keys() == factors.output_factors.keys()
    wanted = seen[0].T @ seen[0] / len(values)
    torch.testing.assert_close(factors.input_factors["classifier.weight"].double(), wanted, rtol=1e-4, atol=1e-6)


def test_the_optimizers_moments_have_the_names_of_the_file(tmp_path: Path, task: TaskData) -> None:
    out = scratch(tmp_path, task, "out")
    assert TensorFiles(out, ADAM).specs.keys() == TensorFiles(out).specs.keys()
    estimate("diagonal", out, task, FisherSettings(estimator="adam"), tmp_path / "fisher")


def test_the_recipes_base_is_a_small_vit_of_grey_digits() -> None:
    base = ROOT / "recipes" / "bases" / "vit-small"
    model = KIND.new_model(base, [str(digit) for digit in range(10)])
    assert sum(parameter.numel() for parameter in model.parameters()) < 1_500_000
    image = np.zeros((28, 28, 1), dtype=np.uint8)
    processor = KIND.load_processor(base)
    processor.check([image])
    assert model(pixel_values=processor([image, image])).logits.shape == (2, 10)


def test_moments_of_a_model_with_a_parameter_that_nothing_uses(tmp_path: Path, task: TaskData) -> None:
    """Dinov2's mask token takes part in its pre-training only."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "mlp_ratio": 2}
    config = Dinov2Config(**sizes, image_size=8, patch_size=4, num_channels=1)
    Dinov2ForImageClassification(config).save_pretrained(tmp_path / "base")
    save_image_processor(tmp_path / "base")
    settings, places = FinetuneSettings(epochs=1, batch_size=8), outputs(tmp_path)
    train(tmp_path / "base", task, settings, *places, keep_moments=True)
    moments = load_file(places[0] / f"{ADAM}.safetensors")
    assert moments.keys() == load_file(places[0] / "model.safetensors").keys()
    assert {name for name, values in moments.items() if not values.any()} == {"dinov2.embeddings.mask_token"}
