"""Tensors in safetensors files: reading, writing, fingerprints."""

import json
import os
import struct
from collections.abc import Mapping, Set
from copy import copy
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Self

from xxhash import xxh3_128, xxh3_128_hexdigest

from stages.running.errors import DamagedError, InputError
from stages.storage.cards import read_json, refuse_pointer, write_json
from stages.storage.checkpoint_files import STEM
from stages.storage.outputs import copy_files

if TYPE_CHECKING:
    import torch


MAX_SHARD_BYTES = 5_000_000_000
DEQUANTISE = "load it with transformers, call `dequantize()`, and save it again with `save_pretrained`"
_QUANTISED = ("F8_", "F6_", "F4")  # what safetensors' names of such types begin with
# safetensors' names of the element types, and torch's.
_TORCH_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
_SAFETENSORS_DTYPES = {torch_name: name for name, torch_name in _TORCH_DTYPES.items()}


@dataclass(frozen=True)
class TensorSpec:
    """What a safetensors header says of one tensor; `dtype` is torch's name of it, for example `float32`."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Number of values."""
        product = 1
        for size in self.shape:
            product *= size
        return product

    @property
    def is_floating(self) -> bool:
        """Whether the values are floating-point numbers."""
        return "float" in self.dtype


@dataclass(frozen=True)
class Selection:
    """A part of a tensor.

    Attributes:
        name: of the tensor.
        rows: numbers of the rows (places in the first dimension), in this order; None for all of them.
        square: whether of the columns only those of the same numbers are taken too.
    """

    name: str
    rows: "torch.Tensor | None"
    square: bool = False


class TensorFiles:
    """The tensors of `STEM.safetensors`, or of the shards that `STEM.safetensors.index.json` lists, in a directory.

    Tensors are mapped into memory, not read: only the pages that are used come from the disk.

    Attributes:
        stored: what the files hold, by tensor name, in the names' order.
        specs: the same by the names that the tensors go by here, which are others after `called`.
        digests: of tensors that have been read whole anyway, by the files' names, so that `fingerprint` need not read
            them again.
        selections: parts of tensors that go by names of their own, which `specs` has too; see `with_selections`.

    Raises:
        InputError: on construction, a file is missing, cut short, not safetensors, or has an unknown element type.
    """

    def __init__(self, directory: Path, stem: str = STEM, *, may_be_empty: bool = False) -> None:
        from safetensors import SafetensorError, safe_open

        self.directory = directory
        self.stem = stem
        self._shards: dict[str, Any] = {}
        self._listed: Set[str] = frozenset()  # the tensors that there should be, if an index says
        specs: dict[str, TensorSpec] = {}
        for file in self._files():
            try:
                shard = safe_open(file, framework="pt")
            except (SafetensorError, OSError) as error:
                if file.is_file():
                    refuse_pointer(file)
                reason = " ".join(str(error).split())
                raise DamagedError(f"{file}: not a whole safetensors file ({reason})", directory) from None
            for name in shard.keys():  # noqa: SIM118 (it is no mapping)
                view = shard.get_slice(name)
                if view.get_dtype().startswith(_QUANTISED):
                    raise InputError(f"{file}: tensor {name} is quantised ({view.get_dtype()}); {DEQUANTISE}")
                if view.get_dtype() not in _TORCH_DTYPES:
                    raise InputError(f"{file}: tensor {name} has the unsupported type {view.get_dtype()}")
                if name in specs:
                    raise InputError(f"{file}: tensor {name} is in another shard too")
                specs[name] = TensorSpec(_TORCH_DTYPES[view.get_dtype()], tuple(view.get_shape()))
                self._shards[name] = shard
        for name in sorted(self._listed - specs.keys()):
            raise InputError(f"{self.file}.index.json: lists the tensor {name}, which none of its files has")
        if not specs and not may_be_empty:
            raise InputError(f"{self.file}: has no tensors")
        self.stored: dict[str, TensorSpec] = dict(sorted(specs.items()))
        self.specs = self.stored
        self.digests: dict[str, str] = {}
        self._stored_names: Mapping[str, str] = {}
        self.selections: Mapping[str, Selection] = {}

    def _files(self) -> list[Path]:
        single = self.directory / f"{self.stem}.safetensors"
        index = self.directory / f"{self.stem}.safetensors.index.json"
        if single.is_file():
            return [single]
        if not index.is_file():
            pickled = next(iter(sorted(self.directory.glob("*.bin")) + sorted(self.directory.glob("*.pt"))), None)
            hint = f" ({pickled.name} may be a pickle; convert it to safetensors)" if pickled else ""
            if quantised := next(iter(sorted(self.directory.glob("*.gguf"))), None):
                hint = f" (but {quantised.name}: give the source `gguf: {quantised.name}`)"
            raise InputError(f"{single}: not found{hint}")
        shards = read_json(index).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
            raise InputError(f"{index}: has no weight_map of file names")
        beside = {path.name for path in self.directory.iterdir() if path.is_file()}
        for shard in sorted(set(shards.values()) - beside):
            raise InputError(f"{index}: lists the file {shard!r}, which is not beside it")
        self._listed = shards.keys()
        return [self.directory / shard for shard in sorted(set(shards.values()))]

    def copy_to(self, directory: Path) -> None:
        """Copy the files as they are, with the index if there is one."""
        index = f"{self.stem}.safetensors.index.json"
        copy_files([*(file.name for file in self._files()), index], self.directory, directory)

    @property
    def file(self) -> Path:
        """The file to name in a message."""
        return self.directory / f"{self.stem}.safetensors"

    def called(self, names: Mapping[str, str]) -> Self:
        """The same files, with their tensors under other names: `names` maps those to the names that they have here.

        Tensors that are not named are left out of `specs`; the files' fingerprint stays that of the whole files.
        """
        view = copy(self)
        view._stored_names = {name: self.stored_name(own) for name, own in names.items()}
        view.specs = {name: self.specs[own] for name, own in sorted(names.items())}
        return view

    def with_selections(self, selections: Mapping[str, Selection]) -> Self:
        """The same files, with these parts of their tensors besides, under new names."""
        view = copy(self)
        view.selections = dict(selections)
        view.specs = dict(self.specs)
        view._stored_names = dict(self._stored_names)
        for name, part in selections.items():
            spec = self.specs[part.name]
            if part.rows is not None:
                kept = spec.shape[2:] if part.square else spec.shape[1:]
                spec = TensorSpec(spec.dtype, (len(part.rows),) * (2 if part.square else 1) + kept)
            view.specs[name] = spec
            view._stored_names[name] = self.stored_name(part.name)
        return view

    def stored_name(self, name: str) -> str:
        """What the files call the tensor that goes by `name` here."""
        return self._stored_names.get(name, name)

    def read(self, name: str) -> "torch.Tensor":
        """The tensor `name`, mapped: treat it as read-only. Of rows that are selected it is a copy."""
        stored = self._read_stored(self.stored_name(name))
        part = self.selections.get(name)
        if part is None or part.rows is None:
            return stored
        return stored[part.rows][:, part.rows] if part.square else stored[part.rows]

    def _read_stored(self, name: str) -> "torch.Tensor":
        return self._shards[name].get_tensor(name)

    def read_as(self, name: str, dtype: "torch.dtype") -> "torch.Tensor":
        """The tensor `name` for a computation in `dtype`: what is stored as it is, what is computed in that type."""
        return self.read(name)

    def take_digest(self, name: str, digest: str) -> None:
        """Remember the digest of the tensor `name`, of which somebody has read all that `read_as` gave."""
        self.digests[self.stored_name(name)] = digest

    def fingerprint(self) -> str:
        """See the function of that name."""
        for name in self.stored.keys() - self.digests.keys():
            self.digests[name] = tensor_digest(self._read_stored(name))
        return combined_fingerprint(self.stored, self.digests)


def fingerprint(tensors: TensorFiles) -> str:
    """A checkpoint's identity: of its tensors' names, types, shapes and bytes, whatever files they lie in.

    Per tensor XXH3-128 (as fast as memory; it guards against mistakes, not forgery), and SHA-256 over the listing.
    """
    return tensors.fingerprint()


def check_fingerprint(tensors: TensorFiles, card: Mapping[str, Any], card_name: str) -> None:
    """Raise `InputError` if the tensors' fingerprint is another than the card's, where that has one."""
    if "fingerprint" in card and card["fingerprint"] != fingerprint(tensors):
        raise DamagedError(f"{tensors.file}: its contents are not what {card_name} says", tensors.directory)


def tensor_digest(tensor: "torch.Tensor") -> str:
    """XXH3-128 of a tensor's bytes, in hexadecimal."""
    return xxh3_128_hexdigest(tensor_bytes(tensor))


def tensor_bytes(tensor: "torch.Tensor") -> memoryview:
    """A tensor's bytes, without a copy if it is contiguous and on the CPU."""
    import torch

    return memoryview(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]


def combined_fingerprint(specs: Mapping[str, TensorSpec], digests: Mapping[str, str]) -> str:
    """The fingerprint of the tensors with these specs and digests."""
    listing = "".join(
        f"{name} {spec.dtype} {list(spec.shape)} {digests[name]}\n" for name, spec in sorted(specs.items())
    )
    return sha256(listing.encode()).hexdigest()


class TensorWriter:
    """Writes safetensors files piece by piece: no tensor needs to be whole in memory.

    What will be written is declared first; then `write` appends to any of the tensors, in any order, also from several
    threads (one tensor from one of them). Past `max_shard_bytes` there are shards with an index, as Hugging Face has
    them. Leaving the context without an exception, everything must have been written.
    """

    def __init__(
        self, directory: Path, stem: str, specs: Mapping[str, TensorSpec], max_shard_bytes: int = MAX_SHARD_BYTES
    ) -> None:
        # Wider types first, so that every tensor starts at a multiple of its element's size.
        names = sorted(specs, key=lambda name: (-_item_bytes(specs[name]), name))
        self._specs = specs
        shards: list[list[str]] = [[]]
        shard_bytes = 0
        for name in names:
            if shards[-1] and shard_bytes + _bytes_of(specs[name]) > max_shard_bytes:
                shards.append([])
                shard_bytes = 0
            shards[-1].append(name)
            shard_bytes += _bytes_of(specs[name])
        count = len(shards)
        self._index = directory / f"{stem}.safetensors.index.json"
        self._file_of: dict[str, str] = {}
        self._stream_of: dict[str, BinaryIO] = {}
        self._place: dict[str, int] = {}  # where in the file the next values of a tensor go
        self._missing = {name: _bytes_of(spec) for name, spec in specs.items()}
        self._digests = {name: xxh3_128() for name in specs}
        self._streams: list[BinaryIO] = []
        for i, shard in enumerate(shards):
            file = f"{stem}.safetensors" if count == 1 else f"{stem}-{i + 1:05}-of-{count:05}.safetensors"
            stream = (directory / file).open("wb", buffering=0)
            self._streams.append(stream)
            header = _header({name: specs[name] for name in shard})
            stream.write(header)
            place = len(header)
            for name in shard:
                self._file_of[name], self._stream_of[name], self._place[name] = file, stream, place
                place += _bytes_of(specs[name])
            stream.truncate(place)

    def __enter__(self) -> Self:
        return self

    def write(self, name: str, values: "torch.Tensor") -> None:
        """Append `values` to the tensor `name`."""
        content = tensor_bytes(values)
        if str(values.dtype) != f"torch.{self._specs[name].dtype}" or len(content) > self._missing[name]:
            raise ValueError(f"{values.numel()} values of {values.dtype} do not fit into what is left of {name}")
        self._digests[name].update(content)
        self._missing[name] -= len(content)
        while content:  # a system call writes at most 2 GiB
            written = os.pwrite(self._stream_of[name].fileno(), content, self._place[name])
            self._place[name] += written
            content = content[written:]

    def fingerprint(self) -> str:
        """The fingerprint of what has been written."""
        return combined_fingerprint(self._specs, {name: digest.hexdigest() for name, digest in self._digests.items()})

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for stream in self._streams:
            stream.close()
        if kind is not None:
            return
        if missing := sorted(name for name, count in self._missing.items() if count):
            raise ValueError(f"{missing[0]} was not written whole")
        if len(self._streams) > 1:
            total = sum(map(_bytes_of, self._specs.values()))
            write_json(
                self._index, {"metadata": {"total_size": total}, "weight_map": dict(sorted(self._file_of.items()))}
            )


def _bytes_of(spec: TensorSpec) -> int:
    return spec.elements * _item_bytes(spec)


def _item_bytes(spec: TensorSpec) -> int:
    return {"float64": 8, "int64": 8, "float32": 4, "int32": 4, "float16": 2, "bfloat16": 2, "int16": 2}.get(
        spec.dtype, 1
    )


def _header(specs: Mapping[str, TensorSpec]) -> bytes:
    """The safetensors header: its length in 8 bytes, then JSON, padded to a multiple of 8."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, spec in specs.items():
        end = offset + _bytes_of(spec)
        header[name] = {
            "dtype": _SAFETENSORS_DTYPES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def write_tensors(directory: Path, stem: str, tensors: Mapping[str, "torch.Tensor"]) -> str:
    """Write whole tensors as `STEM.safetensors`, or shards of it. Returns their fingerprint."""
    specs = {
        name: TensorSpec(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
        for name, tensor in tensors.items()
    }
    with TensorWriter(directory, stem, specs) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor.cpu())
        return writer.fingerprint()
