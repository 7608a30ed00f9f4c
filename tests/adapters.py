"""Random adapters of tiny models, and what their files say that their models' weights are, in float64 NumPy."""

import json
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

PREFIX = "base_model.model."
TOKENS = torch.arange(5, 15)[None]  # known to all tiny models
Arrays = dict[str, np.ndarray]


def wrapped(architecture: Any, base: Path, config: Any, seed: int = 1, noise: float = 0.3) -> Any:
    """A base with a random adapter on it, by peft, in float32."""
    model = architecture.from_pretrained(base, dtype=torch.float32)
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(model, config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * noise)
    return model.eval()


def write_adapter(
    architecture: Any, base: Path, config: Any, directory: Path, seed: int = 1, noise: float = 0.3
) -> Any:
    """Write a random adapter of a base as peft does; returns the model, with the adapter on it."""
    model = wrapped(architecture, base, config, seed, noise)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(directory, save_embedding_layers=False)
    change_config(directory, base_model_name_or_path=str(base))
    return model


def config_of(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "adapter_config.json").read_text())
    return found


def change_config(directory: Path, **changes: Any) -> None:
    (directory / "adapter_config.json").write_text(json.dumps(config_of(directory) | changes))


def adapter_tensors(directory: Path) -> dict[str, Tensor]:
    return load_file(directory / "adapter_model.safetensors")


def change_tensors(directory: Path, edit: Any) -> None:
    tensors = adapter_tensors(directory)
    edit(tensors)
    save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})


def names_in(file: Path) -> set[str]:
    with safe_open(file, framework="pt") as tensors:
        return set(tensors.keys())


def arrays(tensors: Mapping[str, Tensor]) -> Arrays:
    return {name: tensor.double().numpy() for name, tensor in tensors.items()}


def base_arrays(base: Path) -> Arrays:
    return arrays(load_file(base / "model.safetensors"))


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.eval()(input_ids=TOKENS).logits
    return found


def _of_pattern(config: Mapping[str, Any], key: str, path: str, default: Any) -> Any:
    return next((n for pattern, n in config[key].items() if re.fullmatch(rf"(.*\.)?({pattern})", path)), default)


def lora_reference(base: Path, directory: Path) -> Arrays:
    """The weights of a LoRA adapter's model: W + s B A; with DoRA, of each output the length m: m (W + s B A) / ‖…‖.

    With rsLoRA s = α / √r, else α / r. Of an embedding [tokens, size] the change is (s B A)ᵀ, as of a Conv1D [in, out].
    What is saved as a whole, and biases, are the adapter's.
    """
    config, own, found = config_of(directory), arrays(adapter_tensors(directory)), base_arrays(base)
    for name, a in own.items():
        path = name.removeprefix(PREFIX).partition(".lora_")[0]
        if name.endswith((".lora_A.weight", ".lora_embedding_A")):
            b = own[name.replace("lora_A", "lora_B").replace("embedding_A", "embedding_B")]
            rank = _of_pattern(config, "rank_pattern", path, config["r"])
            alpha = _of_pattern(config, "alpha_pattern", path, config["lora_alpha"])
            assert len(a) == rank
            change = alpha / (np.sqrt(rank) if config["use_rslora"] else rank) * (b @ a)
            weight = found[f"{path}.weight"]
            transposed = "embedding" in name or config["fan_in_fan_out"]
            weight = weight + (change.T if transposed else change)
            if config["use_dora"]:
                length = own[f"{PREFIX}{path}.lora_magnitude_vector"]
                axis = 0 if transposed else 1
                weight = weight * np.expand_dims(length / np.linalg.norm(weight, axis=axis), axis)
            found[f"{path}.weight"] = weight
        elif ".lora_" not in name:
            found[name.removeprefix(PREFIX).replace(".base_layer", "")] = a
    return found


def ia3_reference(base: Path, directory: Path) -> Arrays:
    """The weights of an (IA)³ adapter's model: outputs, their biases too, or a feed-forward layer's inputs, scaled."""
    config, own, found = config_of(directory), arrays(adapter_tensors(directory)), base_arrays(base)
    for name, vector in own.items():
        path = name.removeprefix(PREFIX).removesuffix(".ia3_l")
        if not name.endswith(".ia3_l"):  # saved as a whole
            found[path] = vector
            continue
        weight = found[f"{path}.weight"]
        inputs = any(path.endswith(ending) for ending in config["feedforward_modules"])
        scales = vector.reshape(-1)
        first_is_output = not config["fan_in_fan_out"]
        found[f"{path}.weight"] = weight * (scales[None] if inputs == first_is_output else scales[:, None])
        if not inputs and f"{path}.bias" in found:
            found[f"{path}.bias"] = found[f"{path}.bias"] * scales
    return found
