"""PEFT adapters: which of their base's tensors they change, and into what; peft's own layers compute it.

Only peft's layers know what an adapter computes (scaling, rsLoRA, DoRA, patterns of ranks), so each changed weight is
what such a layer merges into the base's. It is compared with what the unmerged layer gives, since some merge otherwise.
"""

import warnings
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.running.errors import InputError
from stages.storage.cards import read_json
from stages.storage.checkpoint_files import ADAPTER_CONFIG, ADAPTER_STEM, is_adapter
from stages.storage.naming import Model
from stages.storage.tensors import TensorFiles

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

PREFIX = "base_model.model."  # of tensors' names in an adapter's file
NAME = "default"  # of the only adapter that a model has here, as peft calls it
BASE = "base_model_name_or_path"  # in an adapter's configuration
# Of the layers' own tensors, in a model: names that their file does not have.
_INNER = (f".{NAME}", ".modules_to_save")
VECTORS = ("IA3",)  # types whose own parameters are vectors, of which an average is an adapter of that type
# Types that have been tried: what they make of a weight, their file and the weight say. Others (OSF, PSOFT) take more
# from the base when they are put on it, and their layers on a base without values compute something else.
_TRIED = {
    "ADALORA", "BOFT", "C3A", "DEFT", "FOURIERFT", "GRALORA", "HIRA", "HRA", "IA3", "LN_TUNING", "LOHA", "LOKR", "LORA",
    "MISS", "OFT", "PEANUT", "ROAD", "TRAINABLE_TOKENS", "WAVEFT",
}  # fmt: skip
# What LoRA's matrices may have been at first; all else (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) changes the base for it.
_BESIDE_THE_BASE = ("gaussian", "eva", "mica", "orthogonal")
# In an adapter's configuration: what decides no value of its model.
_NO_MATTER = {BASE, "auto_mapping", "inference_mode", "peft_version", "revision", "task_type"}
_PROBES = 2  # inputs on which a merged layer is compared with itself
# By how much it may differ: of the norm of what the adapter changes in the outputs, and of the outputs' (rounding).
_OF_CHANGE, _OF_OUTPUTS = 1e-4, 1e-5


def adapter_config(directory: Path) -> dict[str, Any]:
    """An adapter's configuration. Raises `InputError` if it cannot be read or does not say its type."""
    config = read_json(directory / ADAPTER_CONFIG)
    if not isinstance(config.get("peft_type"), str):
        raise InputError(f"{directory / ADAPTER_CONFIG}: does not say the adapter's type (peft_type)")
    return config


def has_vectors(directory: Path) -> bool:
    """Whether a directory is an adapter whose own parameters are vectors that scale activations, as (IA)³'s are."""
    return is_adapter(directory) and adapter_config(directory)["peft_type"] in VECTORS


def deciding_config(directory: Path) -> dict[str, Any]:
    """Of an adapter's configuration, what decides values of its model; names in one order."""
    found = {key: value for key, value in adapter_config(directory).items() if key not in _NO_MATTER}
    return {key: sorted(value, key=str) if isinstance(value, list) else value for key, value in found.items()}


def adapter_base(directory: Path, given: Path | None = None) -> Path:
    """The directory of an adapter's base: the one that the adapter's configuration names, if it is here, or the given.

    Raises:
        InputError: neither is a directory; or the base is an adapter itself.
    """
    named = adapter_config(directory).get(BASE)
    places = [place / str(named) for place in (Path(), *directory.resolve().parents)] if named else []
    base = next((place for place in places if place.is_dir()), given)
    if base is None or not base.is_dir():
        raise InputError(
            f"{directory / ADAPTER_CONFIG}: the adapter's base, {named!r}, is no directory here; give the directory of "
            "the base"
        )
    if (base / ADAPTER_CONFIG).is_file():
        raise InputError(f"{base}: is an adapter, and no base of another; merge it into its own base first")
    return base


def attach(model: Model, directory: Path, tensors: Mapping[str, "Tensor"]) -> Model:
    """Put an adapter's layers, with its tensors, into a model of its base, in place; returns that model.

    Args:
        model: of the base, with values or without.
        directory: the adapter's.
        tensors: of its file; those that are no parameters of the adapter's layers (biases of the base's that were
            trained) are passed over.

    Raises:
        InputError: peft does not know the adapter, or it does not fit the model.
    """
    import peft

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = peft.PeftConfig.from_pretrained(str(directory))
            config.inference_mode = True
            _refuse_other_models(directory, config)
            wrapped = peft.get_peft_model(model, config)
            inner = wrapped.get_base_model()
            parameters = adapter_parameters(inner)
            bases = {file_name(name) for name, _ in inner.named_parameters() if name not in parameters}
            own = {name: tensor for name, tensor in tensors.items() if name not in bases}
            if missing := sorted({file_name(name) for name in parameters} - own.keys()):
                raise InputError(
                    f"{directory / ADAPTER_STEM}.safetensors: lacks the tensor {missing[0]}; fetch it again"
                )
            peft.set_peft_model_state_dict(wrapped, own)
    except InputError:
        raise
    except Exception as error:  # whatever peft makes of an adapter that it cannot take
        raise InputError(f"{directory}: {' '.join(str(error).split())[:300]}; it is no adapter of this base") from None
    return inner


def _refuse_other_models(directory: Path, config: Any) -> None:
    """Refuse an adapter whose model is not its base's weights, changed by what its file has.

    Args:
        directory: the adapter's.
        config: its configuration, as peft has read it: what peft does not know it leaves out.

    Raises:
        InputError: with what its configuration says.
    """
    stated = adapter_config(directory)
    file, kind = directory / ADAPTER_CONFIG, stated["peft_type"]
    if config.is_prompt_learning:
        raise InputError(
            f"{directory}: a {kind} adapter changes no weight of its base, so it cannot be merged or measured"
        )
    if kind not in _TRIED:
        raise InputError(f"{file}: what {kind} adapters make of weights is not known here, so none can be merged")
    start = stated.get("init_lora_weights")
    if isinstance(start, str) and start.lower() not in _BESIDE_THE_BASE:
        raise InputError(
            f"{file}: init_lora_weights is {start!r}: the adapter's base is no longer the one that it names, since "
            "peft has changed it at first; save the adapter as one of the unchanged base, by `save_pretrained` with "
            "`path_initial_model_for_weight_conversion`"
        )
    known = {field.name for field in fields(config)} | _NO_MATTER
    for key, value in sorted(stated.items()):
        if key not in known and value not in (None, False, "", [], {}):
            raise InputError(
                f"{file}: {key} is {value!r}, which the installed peft does not know of {kind} adapters and would "
                "leave out; install a newer peft, or remove the key if it decides no value"
            )


def file_name(parameter: str) -> str:
    """What an adapter's file calls a parameter of the model that it is attached to."""
    parameter = parameter.removesuffix(f".{NAME}.weight") if ".lora_magnitude_vector." in parameter else parameter
    for inner in _INNER:
        parameter = parameter.replace(f"{inner}.", ".").removesuffix(inner)
    return PREFIX + parameter


def adapter_parameters(model: Model) -> dict[str, "nn.Parameter"]:
    """The adapter's own parameters in a model that it is attached to, by the names that they have there."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    own = set()
    for path, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            stems = tuple(f"{path}.{stem}." for stem in module.adapter_layer_names)
            own |= {name for name, _ in model.named_parameters() if f"{name}.".startswith(stems)}
    own |= {name for name, _ in model.named_parameters() if f".modules_to_save.{NAME}." in name}
    return {name: parameter for name, parameter in model.named_parameters() if name in own}


class Adapter:
    """An adapter's change of its base's tensors, by the model's names.

    Attributes:
        directory: where it is.
        tensors: its own weights, mapped.
        computed: names of the tensors that its layers make of the base's.
        replaced: the model's name of each tensor that is the adapter's own as a whole → the name in its file.

    Args:
        directory: the adapter's.
        model: of its base, without values (`naming.empty_model`); it is the adapter's from then on.

    Raises:
        InputError: the adapter cannot be read or does not fit, or no weight of a model is what it computes.
    """

    def __init__(self, directory: Path, model: Model) -> None:
        self.directory = directory
        self.tensors = TensorFiles(directory, ADAPTER_STEM)
        names = set(model.state_dict())
        _let_be_hollow(model)
        self._model = attach(model, directory, {name: self.tensors.read(name) for name in self.tensors.specs})
        self._layers = dict(self._changing_layers())
        self.computed = set(self._layers)
        self.replaced = dict(self._whole_tensors(names))
        taken = {file_name(name) for name in adapter_parameters(self._model)} | set(self.replaced.values())
        bases = {name for name in self.tensors.specs if name.endswith(".base_layer.weight")}
        self._bases = {name.removeprefix(PREFIX).replace(".base_layer", ""): name for name in bases}
        if rest := sorted(self.tensors.specs.keys() - taken - bases):
            raise InputError(f"{self.tensors.file}: the tensor {rest[0]} is no part of what the adapter computes")

    def _changing_layers(self) -> Iterator[tuple[str, Any]]:
        """The name of each weight and bias that a layer of the adapter changes, and the layer."""
        from peft.tuners.tuners_utils import BaseTunerLayer
        from torch import nn
        from transformers.pytorch_utils import Conv1D

        kind = adapter_config(self.directory)["peft_type"]
        found = 0
        for path, layer in self._model.named_modules():
            if not isinstance(layer, BaseTunerLayer):
                continue
            found += 1
            base = layer.get_base_layer()
            if not isinstance(base, nn.Linear | nn.Embedding | Conv1D) or not hasattr(layer, "merge"):
                raise InputError(
                    f"{self.directory}: the {kind} adapter's layer {path} ({type(base).__name__}) is not the change of "
                    "a weight that can be merged; only Linear and Embedding layers can"
                )
            if base.weight.untyped_storage().nbytes() > base.weight.element_size():  # no longer hollow
                raise InputError(
                    f"{self.directory}: the {kind} adapter changes {path} of its base before it is put on it, so its "
                    "weights cannot be told"
                )
            yield f"{path.removesuffix('.token_adapter')}.weight", layer
            if getattr(base, "bias", None) is not None and _changes_bias(layer):
                yield f"{path}.bias", layer
        if not found and not any(".modules_to_save." in name for name, _ in self._model.named_parameters()):
            raise InputError(
                f"{self.directory}: a {kind} adapter changes no weight of its base, so it cannot be merged"
            )

    def _whole_tensors(self, names: set[str]) -> Iterator[tuple[str, str]]:
        """The tensors that an adapter has whole: of modules that it was to save, and biases that were trained."""
        for name in self.tensors.specs:
            own = name.removeprefix(PREFIX).replace(".base_layer", "")
            if own in names and not name.endswith(".base_layer.weight"):
                yield own, name

    def weight(self, name: str, base: "Tensor", dtype: "torch.dtype") -> "Tensor":
        """What the adapter makes of the base's tensor `name`, one of `computed`, computed in `dtype`.

        Raises:
            InputError: the weight is not what the adapter's layer computes with.
        """
        from torch import nn

        own = name.rpartition(".")[2]  # weight or bias
        layer = deepcopy(self._layers[name]).to(dtype).eval()
        inner = layer.get_base_layer()
        if (kept := self._bases.get(name, self.replaced.get(name))) is not None:
            base = self.tensors.read(kept)
        if tuple(getattr(inner, own).shape) != tuple(base.shape):
            raise InputError(
                f"{self.directory}: is for a tensor {name} of the shape {list(getattr(inner, own).shape)}, but the "
                f"base's has {list(base.shape)}; it is no adapter of this base"
            )
        for other in ("weight", "bias"):  # the one that is not asked for may be anything
            if (tensor := getattr(inner, other, None)) is not None:
                values = base.to(dtype, copy=True) if other == own else _random(tuple(tensor.shape), dtype)
                setattr(inner, other, nn.Parameter(values, requires_grad=False))
        self._merge(name, layer)
        found: Tensor = getattr(inner, own)
        return found.detach()

    def _merge(self, name: str, layer: Any) -> None:
        """Let a layer merge its change into its base's tensors; see `weight`."""
        import torch

        inner = layer.get_base_layer()
        bias = None if getattr(inner, "bias", None) is None else inner.bias.clone()
        with torch.no_grad():
            probes = _probes(inner)
            plain, unmerged = inner(probes), layer(probes)
            try:
                layer.merge()
            except Exception as error:  # whatever a layer says that cannot be merged
                raise InputError(f"{self.directory}: {name}: cannot be merged: {error}") from None
            merged = inner(probes)
        allowed = _OF_CHANGE * (unmerged - plain).norm() + _OF_OUTPUTS * unmerged.norm()
        if not (unmerged - merged).norm() <= allowed:
            if not all(tensor.isfinite().all() for tensor in layer.state_dict().values()):
                raise InputError(
                    f"{self.directory}: {name}: the adapter or its base has NaN or infinite entries there; make or "
                    "fetch them again"
                )
            raise InputError(
                f"{self.directory}: what the adapter computes with {name} is not what it computes once it is merged "
                "into the weight, so no merge of weights is right"
            )
        beside = f"{name.rpartition('.')[0]}.bias"
        if bias is not None and beside not in self.computed and not torch.equal(bias, inner.bias):
            raise InputError(
                f"{self.directory}: the adapter changes {beside} too, as it is known of LoRA and (IA)³ adapters only, "
                "so it cannot be merged"
            )


def _changes_bias(layer: Any) -> bool:
    """Whether a layer, once it is merged, changes its base's bias too."""
    from peft.tuners.ia3 import IA3Layer
    from peft.tuners.lora import LoraLayer

    if isinstance(layer, IA3Layer):
        return not layer.is_feedforward  # outputs are scaled, and the bias is in them
    return isinstance(layer, LoraLayer) and bool(layer.lora_bias.get(NAME))


def _random(shape: tuple[int, ...], dtype: "torch.dtype") -> "Tensor":
    """Normally distributed values, always the same."""
    import torch

    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def _probes(layer: "nn.Module") -> "Tensor":
    """Inputs of a Linear, Conv1D or Embedding, always the same."""
    import torch
    from torch import nn

    if isinstance(layer, nn.Embedding):
        return torch.arange(min(8, layer.num_embeddings))[None]
    weight: Any = layer.weight
    inputs = layer.in_features if isinstance(layer, nn.Linear) else weight.shape[0]
    return _random((_PROBES, inputs), weight.dtype)


def _let_be_hollow(model: Model) -> None:
    """Give a model on no device parameters on the CPU, of zeros that take no memory: peft's layers can be put on it."""
    import torch
    from torch import nn

    made: dict[int, nn.Parameter] = {}  # tied parameters stay one
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                zeros = torch.zeros((), dtype=torch.float32).expand(parameter.shape)
                module._parameters[name] = made.setdefault(id(parameter), nn.Parameter(zeros, requires_grad=False))
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.zeros((), dtype=buffer.dtype).expand(buffer.shape)
