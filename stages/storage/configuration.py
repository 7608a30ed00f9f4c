"""What belongs to a checkpoint beside its weights: configuration, tokenizer and more."""

import shutil
from pathlib import Path

from stages.storage.cards import read_json
from stages.storage.checkpoint_files import ADAPTER_CONFIG, CHECKPOINT_CARD
from stages.storage.statistics import STATISTICS

# Names and endings, in lower case, of what no model that is made from a checkpoint takes over from its directory.
# fmt: off
CODE = (".py", ".pyc", ".pyd", ".so", ".dll", ".dylib", ".exe", ".sh", ".ipynb", ".js", ".c", ".cpp", ".cu", ".h")
WEIGHT_FORMATS = (
    ".safetensors", ".index.json", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".distcp", ".mar",
    ".nemo", ".msgpack", ".h5", ".hdf5", ".keras", ".ot", ".npz", ".npy", ".gguf", ".ggml", ".pdparams", ".params",
    ".pb", ".meta", ".index", ".data-00000-of-00001", ".tflite", ".mlmodel", ".engine", ".onnx", ".onnx_data",
    ".onnx.data", ".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z",
)
# fmt: on
CARDS = (
    CHECKPOINT_CARD,
    ADAPTER_CONFIG,
    "contents.json",
    *(f"{kind.stem}.json" for kind in STATISTICS.values()),
    "readme.md",
)

TOKENIZER_CONFIG, CHAT_TEMPLATE, CHAT_TEMPLATES = (
    "tokenizer_config.json",
    "chat_template.jinja",
    "additional_chat_templates",  # a directory of further ones
)
SUPERSEDED = ("special_tokens_map.json", "added_tokens.json")  # of an older tokenizer; one is saved without them


def configuration_files(directory: Path) -> list[Path]:
    """What belongs to a checkpoint beside its weights, relative to its directory: config, tokenizer and more.

    That is all in it that is no weight, no code, no card of ours or model card (they tell of other weights), no
    configuration of an adapter (it tells how its weights are read), and not hidden. A sub-directory that has weights of
    its own is another model, and nothing of it belongs to this one.
    """
    found = [file.relative_to(directory) for file in sorted(directory.rglob("*")) if file.is_file()]
    models = {file.parent for file in found if _named(file, WEIGHT_FORMATS)} - {Path()}
    return [
        file
        for file in found
        if not _named(file, (*CODE, *WEIGHT_FORMATS))
        and file.as_posix().lower() not in CARDS
        and not any(part.startswith(".") for part in file.parts)
        and not models.intersection(file.parents)
    ]


def copy_configuration(source: Path, target: Path) -> None:
    """Copy what belongs to a checkpoint beside its weights; see `configuration_files`."""
    for file in configuration_files(source):
        (target / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / file, target / file)


def copy_adapter_configuration(base: Path, adapter: Path, target: Path) -> None:
    """Copy what belongs to an adapter's model beside its weights: the adapter's own, and what it has not, its base's.

    Of the base's tokenizer nothing is taken that would be read before what the adapter's says of the same.
    """
    copy_configuration(base, target)
    own = read_json(adapter / TOKENIZER_CONFIG) if (adapter / TOKENIZER_CONFIG).is_file() else None
    if own is not None:
        for name in SUPERSEDED:
            (target / name).unlink(missing_ok=True)
    if (adapter / CHAT_TEMPLATE).is_file() or (own or {}).get("chat_template") is not None:
        (target / CHAT_TEMPLATE).unlink(missing_ok=True)
        shutil.rmtree(target / CHAT_TEMPLATES, ignore_errors=True)
    copy_configuration(adapter, target)


def _named(file: Path, endings: tuple[str, ...]) -> bool:
    return file.name.lower().endswith(endings)
