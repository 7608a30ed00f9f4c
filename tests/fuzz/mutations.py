"""Mutations of a safetensors file's bytes, as its header and its data."""

import json
import struct
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.fuzz.cases import Random, choice

VALUES: list[Any] = [
    *(None, True, 0, -1, 2, 0.5, 10**30, 10**400, float("nan"), float("inf"), "", "x", "\n", "\ud83d", "0" * 64),
    *([], {}, [0], ["x"], [[]], {"x": 1}, {"norm": 1.0}, [-1, 4], [4, 0], [0, 2**63], [0, 2**64], "é" * 1000),
]
TYPES = ["F64", "F32", "F16", "BF16", "I64", "I8", "U8", "BOOL", "F8_E4M3", "F4", "C64", "U64", "X", "f32", ""]

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
