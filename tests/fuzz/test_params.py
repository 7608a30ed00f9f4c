"""Bad params.yaml files: each gives valid parameters, whose stages are safe to run, or one line that says where."""

import copy
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from ruamel.yaml import YAML

from stages.params import Params, load_params
from stages.pipeline.graph import planned_stages
from stages.running.errors import InputError
from tests.fuzz.cases import Random, choice, refused
from tests.fuzz.conftest import Runner
from tests.project import ROOT

SEEDS = 100
TEXT = (ROOT / "params.yaml").read_text(encoding="utf-8")
CONTENT = YAML(typ="safe", pure=True).load(TEXT)

WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
NAMES = [
    *(
        "../x",
        "..",
        ".",
        "/etc",
        "a/b",
        "a\\b",
        "a;rm -rf b",
        "$(x)",
        "`x`",
        "a b",
        "-x",
        "--help",
        "a.b",
        "a\n",
        "a\nb",
    ),
    *(
        "a|b",
        "a&b",
        "a>b",
        "'",
        '"',
        "*",
        "~",
        "${key}",
        "%x",
        "a@b",
        "",
        " ",
        "A",
        "é",
        "ａ",
        "a\u200b",
        "a\x00b",
        "\x1b[2J",
    ),
    *("a" * 65, "a" * 100_000, "con", "fisher", "average", "x", "0", "1e3", "null", "true", "a-", "a--b", "\u202ea"),
]
PATHS = [
    "../x",
    "a/../../x",
    "/etc/passwd",
    "~/x",
    "a\\..\\x",
    "a\x00b",
    "a\nb",
    "",
    ".",
    "x" * 2000,
    "a::zip://b",
    "-",
]
VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 0.5, -0.5, 1e308, -1e308, 1e-320, 10**30, -(10**30), 10**400, 2**32, 2**63),
    *(float("nan"), float("inf"), float("-inf"), "", "1", "x", "é\u2028", "\ud83d", "\x1b[31m", "a\nb", "x" * 10_000),
    *(
        [],
        {},
        [[]],
        [None],
        {"": None},
        {"a": {"a": {}}},
        ["a", "a"],
        [0, 1],
        [1, 0],
        list(range(1000)),
        *NAMES,
        *PATHS,
    ),
]


def places(content: Any) -> Iterator[tuple[Any, Any]]:
    """Every container with every key or index in it."""
    pairs = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in pairs:
        yield content, key
        yield from places(value)


def somewhere(content: Any, random: Random) -> tuple[Any, Any]:
    return choice(random, list(places(content)))


def a_mapping(content: Any, random: Random) -> dict[str, Any]:
    return choice(random, [content, *(box[key] for box, key in places(content) if isinstance(box[key], dict))])


# Of the content:


def key_deleted(content: Any, random: Random) -> None:
    box, key = somewhere(content, random)
    del box[key]


def key_renamed(content: Any, random: Random) -> None:
    box = a_mapping(content, random)
    key = choice(random, [*box, "x"])
    box[choice(random, [*NAMES, *box, key[:-1], f"{key} "])] = box.pop(key, None)


def name_changed_everywhere(content: Any, random: Random) -> None:
    name = choice(random, [*content["models"], *content["tasks"], *content["sources"], *content["merges"]])
    other = choice(random, NAMES)

    def renamed(value: Any) -> Any:
        if isinstance(value, dict):
            return {renamed(key): renamed(entry) for key, entry in value.items()}
        if isinstance(value, list):
            return [renamed(entry) for entry in value]
        return other if value == name else value

    changed = renamed(content)
    content.clear()
    content |= changed


def value_replaced(content: Any, random: Random) -> None:
    box, key = somewhere(content, random)
    box[key] = copy.deepcopy(choice(random, VALUES))


def number_replaced(content: Any, random: Random) -> None:
    numbers = [(box, key) for box, key in places(content) if type(box[key]) in (int, float)]
    box, key = choice(random, numbers)
    box[key] = choice(random, [value for value in VALUES if type(value) in (int, float)])


def path_replaced(content: Any, random: Random) -> None:
    kinds = ["file", "list", "files", "inside", "path", "splits", "directory"]
    kind, path = choice(random, kinds), choice(random, PATHS)
    task, source = choice(random, list(content["tasks"].values())), choice(random, list(content["sources"].values()))
    if kind == "file":
        task["file"] = path
    elif kind == "list":
        task["file"] = ["a", path]
    elif kind == "splits":
        task["file"] = {"train": "a", "test": path}
    elif kind == "directory":
        task["file"] = {"directory": path, "split": "a"}
    elif kind == "path":
        source.clear()
        source |= {"path": path, "sha256": 64 * "0"}
    else:
        source[kind] = [path]


def value_moved(content: Any, random: Random) -> None:
    box, key = somewhere(content, random)
    other, there = somewhere(content, random)
    other[there] = copy.deepcopy(box[key])


def key_added(content: Any, random: Random) -> None:
    known = [key for box, key in places(content) if isinstance(key, str)]
    own = ["target", "heads", "search", "prior", "floor", "seed", "max_shard_size", "columns", "text_pair", "split"]
    a_mapping(content, random)[choice(random, [*known, *own, *NAMES])] = copy.deepcopy(choice(random, VALUES))


def value_nested(content: Any, random: Random) -> None:
    box, key = somewhere(content, random)
    for _ in range(int(random.integers(1, 200))):
        box[key] = choice(random, [[box[key]], {"a": box[key]}])


def merge_of_others(content: Any, random: Random) -> None:
    merge = choice(random, list(content["merges"].values()))
    merge["coefficients"] = {
        choice(random, [*NAMES, *content["models"]]): choice(random, [0.5, 1, *VALUES])
        for _ in range(int(random.integers(0, 4)))
    }


def method_changed(content: Any, random: Random) -> None:
    merge = choice(random, list(content["merges"].values()))
    options = {
        "floor": 0.1,
        "prior": "amazon",
        "scale": 2,
        "density": 0.5,
        "search": {"sampler": "tpe"},
        "target": "nyt",
    }
    options |= {"heads": "each", "search": {"sampler": "simplex", "points": 3}, "delta": 0, "alpha": 1}
    merge["method"] = choice(
        random, ["ties", "dare", "slerp", "uncertainty", "task_arithmetic", "kfac", "regmean", "x"]
    )
    for option in random.choice(list(options), 2):
        merge[option] = options[option]


def several_changes(content: Any, random: Random) -> None:
    for _ in range(int(random.integers(2, 30))):
        choice(random, [value_replaced, key_deleted, value_moved])(content, random)


# Of the text:


def text_truncated(text: bytes, random: Random) -> bytes:
    return text[: random.integers(len(text))]


def bytes_flipped(text: bytes, random: Random) -> bytes:
    changed = bytearray(text)
    for place in random.integers(len(text), size=random.integers(1, 20)):
        changed[place] ^= 1 << random.integers(8)
    return bytes(changed)


def bytes_inserted(text: bytes, random: Random) -> bytes:
    start = random.integers(len(text))
    return text[:start] + random.bytes(int(random.integers(1, 50))) + text[start:]


def only_noise(text: bytes, random: Random) -> bytes:
    signs = choice(random, [b"[]{}:,", b"-? \n", b"&a*a :\n", b"'\"\\\n ", b"|>#%!@`", b"a: \n-", bytes(range(256))])
    return bytes(random.choice(list(signs), size=random.integers(3000)).astype("uint8"))


def lines_shuffled(text: bytes, random: Random) -> bytes:
    lines = text.splitlines(keepends=True)
    for _ in range(int(random.integers(1, 5))):
        lines.insert(random.integers(len(lines)), lines.pop(random.integers(len(lines))))
    return b"".join(lines)


def line_repeated(text: bytes, random: Random) -> bytes:
    lines = text.splitlines(keepends=True)
    place = random.integers(len(lines))
    lines[place] *= int(random.integers(2, 5))
    return b"".join(lines)


def indentation_changed(text: bytes, random: Random) -> bytes:
    lines = text.splitlines(keepends=True)
    place = random.integers(len(lines))
    lines[place] = choice(random, [b" ", b"\t", b"    ", b"- ", b"? ", b"\xc2\xa0", b"\xef\xbb\xbf"]) + lines[place]
    return b"".join(lines)


def scalar_tagged(text: bytes, random: Random) -> bytes:
    tags = [
        "!!python/object:os.system",
        "!!python/object/apply:os.system [x]",
        "!!python/name:os.system",
        "!x",
        "!!int x",
    ]
    tags += [
        "!!float x",
        "!!bool x",
        "!!null x",
        "!!timestamp x",
        "!!binary '@'",
        "!!binary é",
        "!!set [a]",
        "!!omap x",
    ]
    tags += [
        "!!pairs x",
        "!!seq x",
        "!!map x",
        "!!str",
        "!<x>",
        "! x",
        "2001-99-99",
        "0x" + "f" * 5000,
        "9" * 5000,
        "0o9",
    ]
    tags += [
        "1:99:99",
        "1_000",
        ".nan",
        "-.inf",
        "1e999",
        "~",
        "<<",
        "=",
        "!!merge x",
        "!!bool",
        "!!int '0b2'",
        "!!int ''",
    ]
    after = [match.end() for match in re.finditer(b": ", text)]
    place = choice(random, after)
    return text[:place] + choice(random, tags).encode() + b" " + text[place:]


def aliases_added(text: bytes, random: Random) -> bytes:
    depth, width = int(random.integers(1, 30)), int(random.integers(1, 10))
    kind = choice(random, ["[{}]", "{{<<: [{}]}}", "{{a: [{}]}}"])
    first = choice(random, ["[x]", "{x: 1}", "&b x", "'" + "x" * 1000 + "'", "*a0", "[*a1]"])
    bomb = f"a0: &a0 {first}\n"
    bomb += "".join(f"a{i}: &a{i} {kind.format(', '.join([f'*a{i - 1}'] * width))}\n" for i in range(1, depth))
    key = choice(random, ["finetune", "fisher", "models", "merges", "sources", "tasks"])
    rest = re.sub(rf"(?ms)^{key}:.*?(?=^\S|\Z)", f"{key}: *a{depth - 1}\n", text.decode())
    return (bomb + rest).encode()


def huge_or_deep(text: bytes, random: Random) -> bytes:
    size = int(random.integers(100, 50_000))
    deep = [b"[" * size, b"{a: " * size, b"- " * size, b"? " * size, b"&a " * size, b"a: {" * size]
    huge = [b'"' + b"x" * size + b'"', b"x " * size, b"|\n" + b" x\n" * size, b"#" * 10 * size, b"!" + b"x" * size]
    place = choice(random, [match.end() for match in re.finditer(b": ", text)])
    return text[:place] + choice(random, deep + huge) + text[place:]


OF_CONTENT: list[Callable[[Any, Random], None]] = [
    *(key_deleted, key_renamed, name_changed_everywhere, value_replaced, number_replaced, path_replaced, value_moved),
    *(key_added, value_nested, merge_of_others, method_changed, several_changes),
]
OF_TEXT: list[Callable[[bytes, Random], bytes]] = [
    *(text_truncated, bytes_flipped, bytes_inserted, only_noise, lines_shuffled, line_repeated, indentation_changed),
    *(scalar_tagged, aliases_added, huge_or_deep),
]


def written(content: Any) -> bytes:
    """Content as YAML: JSON is YAML but for the numbers that JSON does not have."""
    text = json.dumps(content, ensure_ascii=False)
    for number, yaml in (("-Infinity", "-.inf"), ("Infinity", ".inf"), ("NaN", ".nan")):
        text = re.sub(rf"(?<=[\[ ]){number}(?=[,\]}}])", yaml, text)
    return text.encode("utf-8", "surrogatepass")


def outcome(file: Path) -> str:
    """Load the file, and see that what is refused is refused well, and what is not is safe."""
    try:
        params = load_params(file)
    except InputError as error:
        return refused(error, str(file))
    check_stages(params)
    return "valid"


def check_stages(params: Params) -> None:
    """Commands are words, which no shell takes for anything else, and paths stay in the project."""
    for name in (*params.sources, *params.tasks, *params.models, *params.merges):
        assert WORD.fullmatch(name)
    for stage in planned_stages(params).values():
        assert all(WORD.fullmatch(word.removeprefix("-")) for word in stage["cmd"].split(" ")), stage["cmd"]
        plots = [path for plot in stage.get("plots", []) for path in plot]
        for path in (*stage["deps"], *stage["outs"], *plots):
            assert all(WORD.fullmatch(part) for part in PurePosixPath(path).parts), path
    for task in params.tasks.values():
        for inner in task.files:
            assert not inner.startswith("/")
            assert ".." not in PurePosixPath(inner).parts


@pytest.mark.parametrize("mutation", OF_CONTENT, ids=lambda mutation: mutation.__name__)
def test_content(mutation: Callable[[Any, Random], None], run: Runner, tmp_path: Path) -> None:
    def case(random: Random) -> str:
        content = copy.deepcopy(CONTENT)
        mutation(content, random)
        (tmp_path / "params.yaml").write_bytes(written(content))
        return outcome(tmp_path / "params.yaml")

    run(mutation.__name__, SEEDS, case)


@pytest.mark.parametrize("mutation", OF_TEXT, ids=lambda mutation: mutation.__name__)
def test_text(mutation: Callable[[bytes, Random], bytes], run: Runner, tmp_path: Path) -> None:
    def case(random: Random) -> str:
        (tmp_path / "params.yaml").write_bytes(mutation(TEXT.encode(), random))
        return outcome(tmp_path / "params.yaml")

    run(mutation.__name__, SEEDS, case)


def test_the_mutations_start_from_what_is_valid(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_bytes(written(CONTENT))
    assert outcome(tmp_path / "params.yaml") == "valid"


def test_templates_use_nothing_but_names() -> None:
    """What dvc.yaml puts into commands and paths are keys, and values that must be keys of another section."""
    used = set(re.findall(r"\$\{(.*?)\}", (ROOT / "dvc.yaml").read_text(encoding="utf-8")))
    assert used - {"sources", "tasks", "models"} <= {"key", "item.source", "item.base", "item.task"}
