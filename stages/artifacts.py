"""Checkpoint and statistics files: reading, writing, fingerprints, and outputs that appear whole or not at all."""

import json
import shutil
import struct
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Self

from stages.errors import InputError

if TYPE_CHECKING:
    import torch

FORMAT_VERSION = 1  # of the cards beside the tensors
PARTIAL_PREFIX = ".partial-"  # of what is still being written; .dvcignore and .gitignore know it
MAX_SHARD_BYTES = 5_000_000_000

CHECKPOINT_CARD = "checkpoint.json"  # beside model.safetensors: what the checkpoint is and how it was made
ADAM = "adam"  # stem of the file with the optimizer's second moments, beside a checkpoint's weights
FISHER_CARD = "fisher.json"  # beside fisher.safetensors
CONFIGURATION_FILES = (  # what a checkpoint directory may hold beside weights and card
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "tokenizer.model",
)

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


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """A new directory beside `path`, to fill; it becomes `path` when the block ends well, and vanishes otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f"{PARTIAL_PREFIX}{path.name}-", dir=path.parent))
    try:
        yield partial
        partial.chmod(0o755)  # mkdtemp and safetensors make things that only their owner may read
        for entry in partial.rglob("*"):
            entry.chmod(0o755 if entry.is_dir() else 0o644)
        _replace_directory(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _replace_directory(new: Path, path: Path) -> None:
    """Rename `new` to `path`; a directory cannot be renamed onto a full one, so an old one steps aside first."""
    if not path.exists():
        new.rename(path)
        return
    aside = Path(tempfile.mkdtemp(prefix=f"{PARTIAL_PREFIX}{path.name}-", dir=path.parent))
    old = path.rename(aside / "old")
    try:
        new.rename(path)
    except OSError:
        old.rename(path)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file, readable and the same for the same content."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object. Raises `InputError` if it is missing, broken or something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: not found") from None
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON ({' '.join(str(error).split())}); make it again") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a {type(content).__name__}, not an object")
    return content


def tree_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes; of a directory, over its files' relative names and digests in the names' order."""
    if path.is_file():
        with path.open("rb") as file:
            digest = sha256()
            while block := file.read(1 << 20):
                digest.update(block)
            return digest.hexdigest()
    names = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
    return sha256("".join(f"{tree_sha256(path / name)}  {name}\n" for name in names).encode()).hexdigest()


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


class TensorFiles:
    """The tensors of `STEM.safetensors`, or of the shards that `STEM.safetensors.index.json` lists, in a directory.

    Tensors are mapped into memory, not read: only the pages that are used come from the disk.

    Attributes:
        specs: what there is, by tensor name, in the names' order.

    Raises:
        InputError: on construction, a file is missing, cut short, not safetensors, or has an unknown element type.
    """

    def __init__(self, directory: Path, stem: str = "model") -> None:
        from safetensors import SafetensorError, safe_open

        self.directory = directory
        self.stem = stem
        self._shards: dict[str, Any] = {}
        specs: dict[str, TensorSpec] = {}
        for file in self._files():
            try:
                shard = safe_open(file, framework="pt")
            except (SafetensorError, OSError) as error:
                reason = " ".join(str(error).split())
                raise InputError(f"{file}: not a whole safetensors file ({reason}); make or fetch it again") from None
            for name in shard.keys():  # noqa: SIM118 (it is no mapping)
                view = shard.get_slice(name)
                if view.get_dtype() not in _TORCH_DTYPES:
                    raise InputError(f"{file}: tensor {name} has the unsupported type {view.get_dtype()}")
                if name in specs:
                    raise InputError(f"{file}: tensor {name} is in another shard too")
                specs[name] = TensorSpec(_TORCH_DTYPES[view.get_dtype()], tuple(view.get_shape()))
                self._shards[name] = shard
        self.specs: dict[str, TensorSpec] = dict(sorted(specs.items()))

    def _files(self) -> list[Path]:
        single = self.directory / f"{self.stem}.safetensors"
        index = self.directory / f"{self.stem}.safetensors.index.json"
        if single.is_file():
            return [single]
        if not index.is_file():
            pickled = next(iter(sorted(self.directory.glob("*.bin")) + sorted(self.directory.glob("*.pt"))), None)
            hint = f" ({pickled.name} may be a pickle; convert it to safetensors)" if pickled else ""
            raise InputError(f"{single}: not found{hint}")
        shards = read_json(index).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
            raise InputError(f"{index}: has no weight_map of file names")
        for shard in set(shards.values()):
            if Path(shard).name != shard or not (self.directory / shard).is_file():
                raise InputError(f"{index}: lists the file {shard!r}, which is not beside it")
        return [self.directory / shard for shard in sorted(set(shards.values()))]

    def copy_to(self, directory: Path) -> None:
        """Copy the files as they are, with the index if there is one."""
        index = f"{self.stem}.safetensors.index.json"
        copy_files([*(file.name for file in self._files()), index], self.directory, directory)

    @property
    def file(self) -> Path:
        """The file to name in a message."""
        return self.directory / f"{self.stem}.safetensors"

    def read(self, name: str) -> "torch.Tensor":
        """The tensor `name`, mapped: treat it as read-only."""
        return self._shards[name].get_tensor(name)


def fingerprint(tensors: TensorFiles) -> str:
    """A checkpoint's identity: of its tensors' names, types, shapes and bytes, whatever files they lie in.

    Per tensor XXH3-128 (as fast as memory; it guards against mistakes, not forgery), and SHA-256 over the listing.
    """
    return combined_fingerprint(
        {name: (spec, tensor_digest(tensors.read(name))) for name, spec in tensors.specs.items()}
    )


def tensor_digest(tensor: "torch.Tensor") -> str:
    """XXH3-128 of a tensor's bytes, in hexadecimal."""
    from xxhash import xxh3_128_hexdigest

    return xxh3_128_hexdigest(_bytes(tensor))


def _bytes(tensor: "torch.Tensor") -> memoryview:
    """A tensor's bytes, without a copy if it is contiguous and on the CPU."""
    import torch

    return memoryview(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]


def combined_fingerprint(digests: Mapping[str, tuple[TensorSpec, str]]) -> str:
    """The fingerprint of the tensors with these specs and digests."""
    listing = "".join(
        f"{name} {spec.dtype} {list(spec.shape)} {digest}\n" for name, (spec, digest) in sorted(digests.items())
    )
    return sha256(listing.encode()).hexdigest()


class TensorWriter:
    """Writes safetensors files piece by piece: no tensor needs to be whole in memory.

    What will be written is declared first; then `write` is called with each tensor's values, in the order of `names`,
    in one or many pieces. Past `max_shard_bytes` there are shards with an index, as Hugging Face has them.
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
            size = specs[name].elements * _item_bytes(specs[name])
            if shards[-1] and shard_bytes + size > max_shard_bytes:
                shards.append([])
                shard_bytes = 0
            shards[-1].append(name)
            shard_bytes += size
        count = len(shards)
        self._files = [
            directory / (f"{stem}.safetensors" if count == 1 else f"{stem}-{i + 1:05}-of-{count:05}.safetensors")
            for i in range(count)
        ]
        self._shard_of = {name: i for i, shard in enumerate(shards) for name in shard}
        self._shards = shards
        self._index = directory / f"{stem}.safetensors.index.json"
        self.names = names
        self._written = 0  # tensors
        self._missing = 0  # values of the current tensor
        self._stream: BinaryIO | None = None

    def __enter__(self) -> Self:
        return self

    def write(self, name: str, values: "torch.Tensor") -> None:
        """Append `values` to the tensor `name`, which must be the next in `names` or the one already begun."""
        if self._missing == 0:
            if self._written >= len(self.names) or self.names[self._written] != name:
                raise ValueError(f"{name} is not the next tensor")
            self._begin(name)
        if str(values.dtype) != f"torch.{self._specs[name].dtype}" or values.numel() > self._missing:
            raise ValueError(f"{values.numel()} values of {values.dtype} do not fit into what is left of {name}")
        assert self._stream is not None
        self._stream.write(_bytes(values))
        self._missing -= values.numel()
        if self._missing == 0:
            self._written += 1

    def _begin(self, name: str) -> None:
        shard = self._shard_of[name]
        if self._shards[shard][0] == name:
            if self._stream is not None:
                self._stream.close()
            self._stream = self._files[shard].open("wb")
            self._stream.write(_header({member: self._specs[member] for member in self._shards[shard]}))
        self._missing = self._specs[name].elements

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stream is not None:
            self._stream.close()
        if kind is not None:
            return
        if self._written < len(self.names):
            raise ValueError(f"{self.names[self._written]} was not written whole")
        if len(self._files) > 1:
            total = sum(spec.elements * _item_bytes(spec) for spec in self._specs.values())
            weight_map = {name: self._files[shard].name for name, shard in sorted(self._shard_of.items())}
            write_json(self._index, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _item_bytes(spec: TensorSpec) -> int:
    return {"float64": 8, "int64": 8, "float32": 4, "int32": 4, "float16": 2, "bfloat16": 2, "int16": 2}.get(
        spec.dtype, 1
    )


def _header(specs: Mapping[str, TensorSpec]) -> bytes:
    """The safetensors header: its length in 8 bytes, then JSON, padded to a multiple of 8."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, spec in specs.items():
        end = offset + spec.elements * _item_bytes(spec)
        header[name] = {
            "dtype": _SAFETENSORS_DTYPES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def write_tensors(directory: Path, stem: str, tensors: Mapping[str, "torch.Tensor"]) -> None:
    """Write whole tensors as `STEM.safetensors`, or shards of it."""
    specs = {
        name: TensorSpec(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
        for name, tensor in tensors.items()
    }
    with TensorWriter(directory, stem, specs) as writer:
        for name in writer.names:
            writer.write(name, tensors[name].cpu())


def copy_files(names: Iterable[str], source: Path, target: Path) -> None:
    """Copy those of the named files that `source` has."""
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def library_versions(*packages: str) -> dict[str, str]:
    """The installed versions of some packages, for a card."""
    from importlib.metadata import version

    return {package: version(package) for package in packages}
