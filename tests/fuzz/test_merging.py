"""Bad checkpoints and statistics: a merge has exactly the right bytes, or is refused in one line and leaves nothing."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stages.artifacts import FORMAT_VERSION, write_json
from stages.errors import InputError
from stages.merging import merge_checkpoints
from stages.statistics import write_statistic
from stages.tensors import TensorFiles, TensorSpec, TensorWriter
from tests.fuzz.cases import Random, choice, refused
from tests.fuzz.conftest import Runner

SEEDS = 60
SHAPES = {
    "bert.embeddings.weight": (6, 5),
    "bert.dense.weight": (5, 5),
    "bert.dense.bias": (5,),
    "bert.steps": (),
    "classifier.weight": (2, 5),
    "classifier.bias": (2,),
}
MODELS = ("ann", "bob")
VALUES: list[Any] = [
    *(None, True, 0, -1, 2, 0.5, 10**30, 10**400, float("nan"), float("inf"), "", "x", "\n", "\ud83d", "0" * 64),
    *([], {}, [0], ["x"], [[]], {"x": 1}, {"norm": 1.0}, [-1, 4], [4, 0], [0, 2**63], [0, 2**64], "é" * 1000),
]
TYPES = ["F64", "F32", "F16", "BF16", "I64", "I8", "U8", "BOOL", "F8_E4M3", "F4", "C64", "U64", "X", "f32", ""]


def write_model(directory: Path, fisher: Path, number: int, max_shard_bytes: int = 5_000_000_000) -> None:
    """A checkpoint of random values and its Fisher, each in a directory, as the pipeline leaves them."""
    directory.mkdir(parents=True)
    fisher.mkdir(parents=True)
    generator = torch.Generator().manual_seed(number)
    values = {key: torch.randn(shape, generator=generator) for key, shape in SHAPES.items()}
    specs = {key: TensorSpec("float32", shape) for key, shape in SHAPES.items()}
    with TensorWriter(directory, "model", specs, max_shard_bytes) as writer:
        for key, value in values.items():
            writer.write(key, value)
        found = writer.fingerprint()
    write_json(directory / "config.json", {"model_type": "bert", "id2label": {"0": "bad", "1": "good"}})
    write_json(directory / "tokenizer.json", {"model": {"vocab": {"a": 0}}, "added_tokens": []})
    write_json(
        directory / "checkpoint.json",
        {
            "format_version": FORMAT_VERSION,
            "fingerprint": found,
            "base_model_prefix": "bert",
            "labels": ["bad", "good"],
            "task": "reviews",
            "origin": {"method": "finetuned", "examples": 10, "validation_accuracy": 0.5},
        },
    )
    facts = {"estimator": "exact", "likelihood": "categorical", "examples": 10, "seed": 0}
    squares = {key: value.square() for key, value in values.items()}
    write_statistic(fisher, "diagonal", squares, TensorFiles(directory), facts)


class Menagerie:
    """Two models with Fishers, as the pipeline leaves them, that can be spoilt and made whole again."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.out = root / "out"
        for number, name in enumerate(MODELS):
            # bob's tensors lie in several files
            write_model(root / name, root / f"{name}-fisher", number, 5_000_000_000 if name == "ann" else 100)
        self.content = {file: file.read_bytes() for file in root.rglob("*") if file.is_file()}
        # A card or configuration may say that heads cannot be merged, which is as it should be.
        self.right = {
            method: [self.merge(method, heads="merge"), self.merge(method, heads="target")]
            for method in ("fisher", "isotropic")
        }

    def merge(self, method: str, heads: Any = "merge") -> bytes:
        """The merged weights."""
        checkpoints = {name: self.root / name for name in MODELS}
        fishers: dict[str, Path] = {name: self.root / f"{name}-fisher" for name in MODELS}
        λ = {"ann": 0.75, "bob": 0.25}
        merge_checkpoints(checkpoints, self.out, method=method, coefficients=λ, statistics=fishers, heads=heads)
        merged = (self.out / "model.safetensors").read_bytes()
        shutil.rmtree(self.out)
        return merged

    def outcome(self, method: str, right: list[bytes] | None = None) -> str:
        """Merge what has been spoilt; `right` is what may come out, if that is less than usual."""
        try:
            merged = self.merge(method)
        except InputError as error:
            assert not self.out.exists()
            assert not list(self.root.glob(".partial*"))
            return refused(error, str(self.root))
        assert merged in (right or self.right[method]), "a wrong merge"
        return "right"

    def mend(self) -> None:
        """Make everything whole again."""
        for path in sorted(self.root.rglob("*"), reverse=True):
            if path.is_symlink() or path.is_file():
                if path not in self.content:
                    path.unlink()
            elif not any(path in file.parents for file in self.content):
                path.rmdir()
        for file, content in self.content.items():
            if not file.is_file() or file.is_symlink() or file.read_bytes() != content:
                file.unlink(missing_ok=True)
                file.write_bytes(content)

    def tensors_file(self, random: Random) -> Path:
        return choice(random, sorted(file for file in self.content if file.suffix == ".safetensors"))


@pytest.fixture
def menagerie(tmp_path: Path) -> Menagerie:
    return Menagerie(tmp_path)


# Of a safetensors file, as its header and its data:

Header = dict[str, Any]


def with_header(edit: Callable[[Header, Random], object]) -> Callable[[bytes, Random], bytes]:
    """A mutation of the bytes, by one of the parsed header."""

    def mutation(content: bytes, random: Random) -> bytes:
        (length,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + length])
        edit(header, random)
        return framed(json.dumps(header).encode(), content[8 + length :])

    mutation.__name__ = edit.__name__
    return mutation


def framed(header: bytes, data: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def unframed(content: bytes) -> tuple[bytes, bytes]:
    (length,) = struct.unpack("<Q", content[:8])
    return content[8 : 8 + length], content[8 + length :]


def a_tensor(header: Header, random: Random) -> Any:
    return header[choice(random, sorted(header.keys() - {"__metadata__"}))]


def cut_short(content: bytes, random: Random) -> bytes:
    return content[: random.integers(len(content))]


def extended(content: bytes, random: Random) -> bytes:
    return content + random.bytes(int(random.integers(1, 5000)))


def bit_flipped_in_header(content: bytes, random: Random) -> bytes:
    return flipped(content, int(random.integers(8, 8 + len(unframed(content)[0]))), random)


def bit_flipped_in_data(content: bytes, random: Random) -> bytes:
    return flipped(content, int(random.integers(8 + len(unframed(content)[0]), len(content))), random)


def flipped(content: bytes, place: int, random: Random) -> bytes:
    changed = bytearray(content)
    changed[place] ^= 1 << int(random.integers(8))
    return bytes(changed)


def bytes_scattered(content: bytes, random: Random) -> bytes:
    changed = bytearray(content)
    for place in random.integers(len(content), size=random.integers(1, 30)):
        changed[place] = random.integers(256)
    return bytes(changed)


def header_length_changed(content: bytes, random: Random) -> bytes:
    length = len(unframed(content)[0])
    lengths = [0, 1, length - 1, length + 1, length + 8, len(content), 10**8, 2**31, 2**32 - 1, 2**63, 2**64 - 1]
    return struct.pack("<Q", choice(random, lengths)) + content[8:]


@with_header
def offsets_changed(header: Header, random: Random) -> None:
    offsets = a_tensor(header, random)["data_offsets"]
    offsets[random.integers(2)] += choice(random, [-4, 4, -1, 1, 8, 400, 2**31, 2**63, -(2**31)])


@with_header
def offsets_of_another(header: Header, random: Random) -> None:
    a_tensor(header, random)["data_offsets"] = a_tensor(header, random)["data_offsets"]


@with_header
def dtype_changed(header: Header, random: Random) -> None:
    a_tensor(header, random)["dtype"] = choice(random, TYPES)


@with_header
def shape_changed(header: Header, random: Random) -> None:
    tensor = a_tensor(header, random)
    size = int(np.prod(tensor["shape"]))
    shapes = [
        [],
        [size],
        [1, size],
        [size, 1],
        [0],
        [-1],
        [size, 1, 1],
        [2**32, 2**32],
        [2**64],
        [size // 2, 2],
        [1] * 99,
    ]
    tensor["shape"] = choice(random, [*shapes, tensor["shape"][::-1], [1.5], ["1"], None])


@with_header
def tensor_renamed(header: Header, random: Random) -> None:
    name = choice(random, sorted(header))
    header[choice(random, ["x", "", "bert.", "a\nb", "\x1b[2J", "__metadata__", *header, "é" * 500])] = header.pop(name)


@with_header
def tensor_dropped(header: Header, random: Random) -> None:
    del header[choice(random, sorted(header))]


@with_header
def entry_replaced(header: Header, random: Random) -> None:
    name = choice(random, sorted(header))
    if random.random() < 0.5:
        header[name] = choice(random, VALUES)
    else:
        header[name][choice(random, [*header[name], "x"])] = choice(random, VALUES)


@with_header
def metadata_changed(header: Header, random: Random) -> None:
    header["__metadata__"] = choice(random, [{}, {"format": "np"}, {"format": "pt", "x": "y"}, *VALUES])


@with_header
def names_exchanged(header: Header, random: Random) -> None:
    one, other = choice(random, sorted(header)), choice(random, sorted(header))
    header[one], header[other] = header[other], header[one]


def entries_reordered(content: bytes, random: Random) -> bytes:
    header, data = unframed(content)
    entries = list(json.loads(header).items())
    return framed(json.dumps(dict(entries[i] for i in random.permutation(len(entries)))).encode(), data)


def data_reordered(content: bytes, random: Random) -> bytes:
    header, data = unframed(content)
    entries = list(json.loads(header).items())
    moved: Header = {}
    parts = b""
    for i in random.permutation(len(entries)):
        name, entry = entries[i]
        if name != "__metadata__":
            start, end = entry["data_offsets"]
            entry["data_offsets"] = [len(parts), len(parts) + end - start]
            parts += data[start:end]
        moved[name] = entry
    return framed(json.dumps(moved).encode(), parts)


def header_padded(content: bytes, random: Random) -> bytes:
    header, data = unframed(content)
    return framed(header + choice(random, [b" ", b"\n", b"\t", b"\0"]) * int(random.integers(1, 20)), data)


def key_twice(content: bytes, random: Random) -> bytes:
    header, data = unframed(content)
    parsed = json.loads(header)
    name = choice(random, sorted(parsed))
    other = choice(random, [parsed[name], *parsed.values()])
    twice = json.dumps({name: other})[:-1].encode()
    return framed(choice(random, [twice + b"," + header[1:], header.strip()[:-1] + b"," + twice[1:] + b"}"]), data)


def header_replaced(content: bytes, random: Random) -> bytes:
    deep = int(random.integers(10, 100_000))
    headers = [b"", b"{}", b"[]", b"null", b"1", b'"x"', b"{", b"\xff", b"{'a': 1}", b'{"a": NaN}', b"\xef\xbb\xbf{}"]
    headers += [
        b"[" * deep,
        b'{"a":' * deep,
        b"{" + b" " * deep,
        b'{"' + b"x" * deep + b'": 1}',
        b"PK\x03\x04",
        b"\x80\x04.",
    ]
    return framed(choice(random, headers), unframed(content)[1])


OF_TENSORS: list[Callable[[bytes, Random], bytes]] = [
    *(cut_short, extended, bit_flipped_in_header, bit_flipped_in_data, bytes_scattered, header_length_changed),
    *(
        offsets_changed,
        offsets_of_another,
        dtype_changed,
        shape_changed,
        tensor_renamed,
        tensor_dropped,
        entry_replaced,
    ),
    *(metadata_changed, names_exchanged, entries_reordered, data_reordered, header_padded, key_twice, header_replaced),
]


# Of the files:


def file_of_another(menagerie: Menagerie, random: Random) -> None:
    names = sorted(menagerie.content)
    one, other = choice(random, names), choice(random, names)
    one.write_bytes(menagerie.content[other])


def file_missing(menagerie: Menagerie, random: Random) -> None:
    choice(random, sorted(menagerie.content)).unlink()


def file_is_a_directory(menagerie: Menagerie, random: Random) -> None:
    file = choice(random, sorted(menagerie.content))
    file.unlink()
    file.mkdir()


def file_is_a_dangling_link(menagerie: Menagerie, random: Random) -> None:
    file = choice(random, sorted(menagerie.content))
    file.unlink()
    file.symlink_to(choice(random, ["nowhere", file.name]))


def index_changed(menagerie: Menagerie, random: Random) -> None:
    index = menagerie.root / "bob" / "model.safetensors.index.json"
    content = json.loads(menagerie.content[index])
    weights = content["weight_map"]
    names = [
        "../ann/model.safetensors",
        str(menagerie.root / "ann/model.safetensors"),
        "x",
        "",
        ".",
        "..",
        "a\0",
        "config.json",
    ]
    names += ["\\", "x" * 5000, "model.safetensors", "./model-00001-of-00002.safetensors", *set(weights.values())]
    kind = random.integers(4)
    name = choice(random, sorted(weights))
    if kind == 0:
        weights[name] = choice(random, names)
    elif kind == 1:
        weights.update(dict.fromkeys(weights, choice(random, names)))
    elif kind == 2:
        weights[choice(random, ["x", "", name])] = choice(random, [*names, *VALUES])
    else:
        content[choice(random, ["weight_map", "metadata"])] = choice(random, VALUES)
    index.write_text(json.dumps(content))


def tensor_in_two_shards(menagerie: Menagerie, random: Random) -> None:
    shards = sorted((menagerie.root / "bob").glob("*.safetensors"))
    one, other = choice(random, shards), choice(random, shards)
    header, data = unframed(menagerie.content[one])
    parsed = json.loads(header)
    more, its_data = unframed(menagerie.content[other])
    name, entry = choice(random, [item for item in json.loads(more).items() if item[0] != "__metadata__"])
    start, end = entry["data_offsets"]
    parsed[choice(random, [name, f"{name}x"])] = {**entry, "data_offsets": [len(data), len(data) + end - start]}
    one.write_bytes(framed(json.dumps(parsed).encode(), data + its_data[start:end]))


def json_changed(menagerie: Menagerie, random: Random) -> None:
    file = choice(
        random, sorted(file for file in menagerie.content if file.suffix == ".json" and "index" not in file.name)
    )
    content = json.loads(menagerie.content[file])
    for _ in range(int(random.integers(1, 3))):
        box = content
        while isinstance(inner := box[choice(random, sorted(box))], dict) and inner and random.random() < 0.7:
            box = inner
        key = choice(random, [*sorted(box), "x", "seal", "transposed", "architectures"])
        if random.random() < 0.3:
            box.pop(key, None)
        else:
            box[key] = choice(random, VALUES)
        if not content:
            break
    file.write_text(json.dumps(content))


def json_broken(menagerie: Menagerie, random: Random) -> None:
    file = choice(random, sorted(file for file in menagerie.content if file.suffix == ".json"))
    content = menagerie.content[file]
    deep = int(random.integers(10, 100_000))
    broken = [
        b"",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"{",
        b"[" * deep,
        b'{"a":' * deep,
        b"{'a': 1}",
        b"9" * 5000,
        b"\xef\xbb\xbf{}",
    ]
    broken += [
        content[: random.integers(len(content))],
        flipped(content, int(random.integers(len(content))), random),
    ] * 10
    file.write_bytes(choice(random, broken))


OF_FILES: list[Callable[[Menagerie, Random], None]] = [
    *(file_of_another, file_missing, file_is_a_directory, file_is_a_dangling_link, index_changed, tensor_in_two_shards),
    *(json_changed, json_broken),
]


@pytest.mark.parametrize("mutation", OF_TENSORS, ids=lambda mutation: mutation.__name__)
def test_tensors(mutation: Callable[[bytes, Random], bytes], run: Runner, menagerie: Menagerie) -> None:
    def case(random: Random) -> str:
        menagerie.mend()
        file = menagerie.tensors_file(random)
        file.write_bytes(mutation(menagerie.content[file], random))
        # An isotropic merge does not look at Fishers.
        methods = ["fisher"] if file.stem == "fisher" else ["fisher", "isotropic"]
        method = choice(random, methods)
        return menagerie.outcome(method, menagerie.right[method][:1])

    run(mutation.__name__, SEEDS, case)


@pytest.mark.parametrize("mutation", OF_FILES, ids=lambda mutation: mutation.__name__)
def test_files(mutation: Callable[[Menagerie, Random], None], run: Runner, menagerie: Menagerie) -> None:
    def case(random: Random) -> str:
        menagerie.mend()
        mutation(menagerie, random)
        return menagerie.outcome(choice(random, ["fisher", "isotropic"]))

    run(mutation.__name__, 5 * SEEDS if mutation is json_changed else 2 * SEEDS, case)


@pytest.mark.parametrize("method", ["fisher", "isotropic"])
def test_flipped_data_is_always_noticed(method: str, run: Runner, menagerie: Menagerie) -> None:
    """Of a checkpoint, by its own card as well as by its Fisher's; of a Fisher where it is used."""

    def case(random: Random) -> str:
        menagerie.mend()
        file = menagerie.tensors_file(random)
        while method == "isotropic" and "fisher" in file.name:
            file = menagerie.tensors_file(random)
        file.write_bytes(bit_flipped_in_data(menagerie.content[file], random))
        assert menagerie.outcome(method) == "refused"
        return "refused"

    run(f"flipped_data_is_always_noticed[{method}]", 2 * SEEDS, case)
