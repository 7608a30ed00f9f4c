"""Tiny models of every architecture that transformers has: its config shrunk by the names of its fields."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedConfig

from tests.architectures.settings import ARCHITECTURES, SIZES, SPECIAL_TOKENS, STAGES, Settings

VOCABULARY = 40
CLASSES = 3
LARGEST = 5_000_000  # parameters


def settings_of(architecture: str) -> Settings:
    return ARCHITECTURES.get(architecture, Settings())


def tiny_config(architecture: str, class_name: str, task: str) -> PreTrainedConfig:
    """The class's own config at a tiny size: what is no size stays as transformers has it."""
    settings = settings_of(architecture)
    config_class: type[PreTrainedConfig] = getattr(transformers, class_name).config_class
    more: dict[str, Any] = {}
    if task == "causal" and "is_decoder" in _defaults(config_class):
        more["is_decoder"] = True
    if task in ("sequence", "token", "image"):
        more["num_labels"] = CLASSES
    config = config_class(**{**_shrunk(config_class, settings.sizes), **settings.config, **more})
    for each in (config, *(getattr(config, name, None) for name in config.sub_configs)):
        if each is not None:
            each.use_cache = False  # as in training and in estimation: FSMT has no causal mask with it
            for name, token in SPECIAL_TOKENS.items():
                setattr(each, name, token)
    return config


def tiny_model(class_name: str, config: PreTrainedConfig, initialisation: str) -> nn.Module:
    """A model in float32 and eval mode.

    Args:
        class_name: of transformers.
        config: its sizes.
        initialisation: `own`, as transformers does it; `ordinary`, away from zero biases, unit norms, and predictions
            that hardly depend on the input.

    Raises:
        ValueError: it is not tiny.
    """
    torch.manual_seed(0)
    model: nn.Module = getattr(transformers, class_name)(config).float().eval()
    if (size := sum(parameter.numel() for parameter in model.parameters())) > LARGEST:
        raise ValueError(f"no tiny size is known: {size} parameters")
    if initialisation == "ordinary":
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                # A convolution's few inputs would let the images fade from layer to layer.
                scale = parameter[0].numel() ** -0.5 if parameter.ndim == 4 else 0.1
                parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
            for name, buffer in model.named_buffers():
                if name.endswith("running_var"):
                    buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
                elif name.endswith("running_mean"):
                    buffer.copy_(0.1 * torch.randn(buffer.shape, generator=generator))
    return model


def _shrunk(config_class: type[PreTrainedConfig], given: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords that make the config small, and the configs inside it."""
    sizes = {**SIZES, **given}
    shrunk: dict[str, Any] = {}
    for name, default in _defaults(config_class).items():
        if name in given:
            shrunk[name] = given[name]
        elif isinstance(default, tuple | list) and name in STAGES:
            shrunk[name] = type(default)([STAGES[name]] * len(default))
        elif isinstance(default, int) and not isinstance(default, bool) and name in sizes:
            shrunk[name] = sizes[name]
        elif name in SPECIAL_TOKENS:
            shrunk[name] = SPECIAL_TOKENS[name]
        elif name.endswith(("_token_id", "_token_index")) and isinstance(default, int) and default >= VOCABULARY:
            shrunk[name] = 3 + len(shrunk) % 5  # of images and the like: below the first word, so in no text
    for name, inner_class in _inner_configs(config_class).items():
        inner = given.get(name, {})
        shrunk[name] = _shrunk(inner_class, {**given, **inner} if isinstance(inner, Mapping) else given)
        if inner_class.model_type:
            shrunk[name] = {"model_type": inner_class.model_type, **shrunk[name]}
    return shrunk


def _inner_configs(config_class: type[PreTrainedConfig]) -> dict[str, type[PreTrainedConfig]]:
    """Field → the class of the config in it, by default."""
    if not config_class.sub_configs:
        return {}
    default = config_class()
    return {
        name: type(getattr(default, name))
        for name in config_class.sub_configs
        if isinstance(getattr(default, name, None), PreTrainedConfig)
    }


def _defaults(config_class: type[PreTrainedConfig]) -> dict[str, Any]:
    return {
        field.name: field.default if field.default is not dataclasses.MISSING else None
        for field in dataclasses.fields(config_class)
        if field.init
    }
