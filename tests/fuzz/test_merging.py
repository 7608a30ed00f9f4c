"""Bad checkpoints and statistics: a merge has exactly the right bytes, or is refused in one line and leaves nothing."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuzz.cases import Random, choice
from tests.fuzz.conftest import Runner
from tests.fuzz.menagerie import Menagerie
from tests.fuzz.mutations import OF_TENSORS, VALUES, bit_flipped_in_data, flipped, framed, unframed

SEEDS = 60


@pytest.fixture
def menagerie(tmp_path: Path) -> Menagerie:
    return Menagerie(tmp_path)


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
