"""Files: written whole or not at all, readable by safetensors, identified by their contents."""

import errno
import subprocess
import sys
from pathlib import Path
from sqlite3 import OperationalError

import pytest
import torch
from safetensors.torch import load_file, save_file

from stages.running.errors import InputError
from stages.storage.cards import read_json, refuse_pointer, write_json
from stages.storage.configuration import configuration_files, copy_configuration
from stages.storage.digests import tree_sha256
from stages.storage.outputs import atomic_directory, refuse_foreign
from stages.storage.tensors import TensorFiles, TensorSpec, TensorWriter, fingerprint, write_tensors
from tests.project import ROOT

TENSORS = {
    "a.weight": torch.randn(7, 5),
    "b": torch.arange(6, dtype=torch.int64).reshape(2, 3),
    "c": torch.randn(3).bfloat16(),
    "d": torch.randn(4, 2).half(),
    "empty": torch.zeros(0, 4),
    "flag": torch.tensor([True, False, True]),
    "scalar": torch.tensor(2.5, dtype=torch.float64),
}


def test_written_tensors_are_read_back_by_safetensors(tmp_path: Path) -> None:
    write_tensors(tmp_path, "model", TENSORS)
    loaded = load_file(tmp_path / "model.safetensors")
    assert loaded.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)


def test_written_in_pieces_and_shards(tmp_path: Path) -> None:
    tensors = {f"t{i}": torch.randn(10, 10) for i in range(5)}
    specs = {name: TensorSpec("float32", (10, 10)) for name in tensors}
    with TensorWriter(tmp_path, "model", specs, max_shard_bytes=900) as writer:
        # In any order, also in turn.
        for pieces in zip(*(tensors[name].reshape(-1).split(33) for name in reversed(tensors)), strict=True):
            for name, piece in zip(reversed(tensors), pieces, strict=True):
                writer.write(name, piece)
        written = writer.fingerprint()
    assert written == fingerprint(TensorFiles(tmp_path))
    assert len(list(tmp_path.glob("model-*-of-00003.safetensors"))) == 3
    files = TensorFiles(tmp_path)
    for name, tensor in tensors.items():
        assert torch.equal(files.read(name), tensor)


def test_an_unfinished_tensor_is_an_error(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="t was not written whole"),
        TensorWriter(tmp_path, "model", {"t": TensorSpec("float32", (4,))}) as writer,
    ):
        writer.write("t", torch.zeros(3))
    with TensorWriter(tmp_path, "model", {"t": TensorSpec("float32", (4,))}) as writer:
        with pytest.raises(ValueError, match="do not fit"):
            writer.write("t", torch.zeros(5))
        with pytest.raises(KeyError, match="u"):
            writer.write("u", torch.zeros(1))
        with pytest.raises(ValueError, match="float64 do not fit"):
            writer.write("t", torch.zeros(1, dtype=torch.float64))
        writer.write("t", torch.zeros(4))
        with pytest.raises(ValueError, match="do not fit"):
            writer.write("t", torch.zeros(1))


def test_fingerprint_is_of_contents(tmp_path: Path) -> None:
    for name in ("one", "shards", "changed", "renamed"):
        (tmp_path / name).mkdir()
    write_tensors(tmp_path / "one", "model", TENSORS)
    specs = {
        name: TensorSpec(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
        for name, tensor in TENSORS.items()
    }
    with TensorWriter(tmp_path / "shards", "model", specs, max_shard_bytes=40) as writer:
        for name, tensor in TENSORS.items():
            writer.write(name, tensor)
    save_file({**TENSORS, "c": TENSORS["c"] + 1}, tmp_path / "changed/model.safetensors")
    renamed = {("A" if name == "a.weight" else name): tensor for name, tensor in TENSORS.items()}
    save_file(renamed, tmp_path / "renamed/model.safetensors")
    prints = {name: fingerprint(TensorFiles(tmp_path / name)) for name in ("one", "shards", "changed", "renamed")}
    assert prints["one"] == prints["shards"]
    assert len(set(prints.values())) == 3


def test_an_index_cannot_point_elsewhere(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "secret.safetensors")
    (tmp_path / "model").mkdir()
    write_json(tmp_path / "model/model.safetensors.index.json", {"weight_map": {"b": "../secret.safetensors"}})
    with pytest.raises(InputError, match="which is not beside it"):
        TensorFiles(tmp_path / "model")


def test_a_directory_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"

    def fail_halfway() -> None:
        with atomic_directory(out) as partial:
            (partial / "file").write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_halfway()
    assert list((tmp_path / "deep").iterdir()) == []
    with atomic_directory(out) as partial:
        (partial / "file").write_text("first")
        assert not out.exists()
    with atomic_directory(out) as partial:
        (partial / "other").write_text("second")
        assert (out / "file").read_text() == "first"
    assert [path.name for path in out.iterdir()] == ["other"]
    assert list((tmp_path / "deep").iterdir()) == [out]
    assert out.stat().st_mode & 0o055 == 0o055


def test_what_killed_processes_have_left_is_removed(tmp_path: Path) -> None:
    """But not what a living one is writing, nor what belongs to another output."""
    out = tmp_path / "out"
    program = f"""
import os, pathlib
from stages.storage.outputs import atomic_directory
with atomic_directory(pathlib.Path({str(out)!r})) as partial:
    (partial / "file").write_text("half")
    os._exit(1)
"""
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False)
    (left,) = tmp_path.iterdir()
    old = left.with_name(f"{left.name}.old")
    old.mkdir()
    others = [tmp_path / f".partial-out{name}" for name in ("-1-abcdefgh", ".training", ".process-0.safetensors")]
    for other in others:
        other.mkdir()
    with atomic_directory(out) as first:
        assert not left.exists()
        assert not old.exists()
        with atomic_directory(out) as second:
            (second / "file").write_text("second")
        (first / "file").write_text("first")
    assert (out / "file").read_text() == "first"
    assert sorted(tmp_path.iterdir()) == sorted([out, *others])


@pytest.mark.parametrize(
    ("refusal", "number"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), errno.ENOSPC),
        (Exception("I/O error: No space left on device (os error 28)"), errno.ENOSPC),  # tokenizers, safetensors
        (RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"), errno.EIO),
        (OperationalError("database or disk is full"), errno.ENOSPC),
    ],
)
def test_a_refusal_to_write_names_the_output(tmp_path: Path, refusal: Exception, number: int) -> None:
    out = tmp_path / "out"
    with pytest.raises(OSError, match="out") as caught, atomic_directory(out):
        raise refusal
    assert (caught.value.errno, caught.value.filename) == (number, str(out))
    assert not list(tmp_path.iterdir())


def test_broken_cards(tmp_path: Path) -> None:
    file = tmp_path / "card.json"
    for content, message in ((b"{", "not valid JSON"), (b"[]", "holds a list"), (b"\xff", "not valid JSON")):
        file.write_bytes(content)
        with pytest.raises(InputError, match=message):
            read_json(file)


def test_tree_sha256_is_of_names_and_contents(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "sub/file").write_text("text")
        (tmp_path / name / "other").write_text("more")
    assert tree_sha256(tmp_path / "one") == tree_sha256(tmp_path / "two")
    (tmp_path / "two/other").rename(tmp_path / "two/another")
    assert tree_sha256(tmp_path / "one") != tree_sha256(tmp_path / "two")


BELONGING = (
    "config.json generation_config.json preprocessor_config.json processor_config.json tokenizer.json "
    "vocab.txt merges.txt added_tokens.json special_tokens_map.json sentencepiece.bpe.model spiece.model "
    "spm.model source.spm qwen.tiktoken tekken.json bpe.codes entity_vocab.json chat_template.jinja "
    "chat_templates/tool_use.jinja modules.json sentence_bert_config.json 1_Pooling/config.json "
    "assets/pictures/logo.png LICENSE dict.txt my own file"
)
OTHERS = (
    "model.safetensors model-00001-of-00002.safetensors model.safetensors.index.json adam.safetensors "
    "pytorch_model.bin PYTORCH_MODEL.BIN pytorch_model.bin.index.json training_args.bin optimizer.pt "
    "rng_state.pth last.ckpt vocab.pkl flax_model.msgpack tf_model.h5 rust_model.ot weights.npz "
    "model.Q4_1.gguf model.onnx model.onnx_data model.ckpt.data-00000-of-00001 model.ckpt.index model.tar.gz "
    "modeling_own.py lib.so setup.sh __pycache__/m.pyc checkpoint.json contents.json fisher.json README.md "
    ".gitattributes .git/config .cache/huggingface/x.lock 2_Dense/config.json 2_Dense/model.safetensors "
    "onnx/tokenizer.json onnx/model.onnx checkpoint-500/config.json checkpoint-500/deep/vocab.txt "
    "checkpoint-500/pytorch_model.bin"
)


def test_what_belongs_to_a_checkpoint_is_no_weight_and_no_code(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    belonging = {*BELONGING.replace("my own file", "").split(), "my own file"}
    for name in [*belonging, *OTHERS.split()]:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(b"of " + name.encode())
    target.mkdir()
    copy_configuration(source, target)
    copied = {file.relative_to(target).as_posix(): file.read_bytes() for file in target.rglob("*") if file.is_file()}
    assert copied == {name: b"of " + name.encode() for name in belonging}
    assert configuration_files(target) == configuration_files(source)
    assert {entry.name for entry in target.iterdir() if entry.is_dir()} == {"1_Pooling", "assets", "chat_templates"}


def test_a_git_lfs_pointer_is_named(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:" + "a" * 64 + "\nsize 613\n")
    for read in (refuse_pointer, read_json):
        with pytest.raises(
            InputError, match=r"config\.json: is a Git LFS pointer, not the file itself; run `git lfs pull`"
        ):
            read(file)
    file.write_text("{}")
    refuse_pointer(file)


@pytest.mark.parametrize(
    "content",
    [{"kept.txt": "x"}, {"sub/kept.txt": "x"}, {"ours.txt": "y", "theirs.txt": "x"}, {"sub/ours.txt": "x"}],
    ids=str,
)
def test_what_is_not_ours_is_not_replaced(tmp_path: Path, content: dict[str, str]) -> None:
    for name, text in content.items():
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).write_text(text)
    with pytest.raises(InputError, match=r"out: holds .*, which would be lost; name a new or an empty directory"):
        refuse_foreign(tmp_path / "out", {"ours.txt"})
    refuse_foreign(tmp_path / "out", content)
    refuse_foreign(tmp_path / "new", {"ours.txt"})


def test_inputs_are_not_written_into(tmp_path: Path) -> None:
    (tmp_path / "models/a").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "models")
    for out in ("models/a", "models", "models/a/out", "link/a", "link/a/b/c", "models/../link", "."):
        with pytest.raises(InputError, match=r"is, holds or lies in the input .*a; name a directory apart from it"):
            refuse_foreign(tmp_path / out, (), [tmp_path / "models/a"])
    for out in ("models/b", "models/ab", "link/b", "b"):
        refuse_foreign(tmp_path / out, (), [tmp_path / "models/a"])


def test_tensors_under_other_names(tmp_path: Path) -> None:
    """The files, their fingerprint and the digests stay theirs."""
    write_tensors(tmp_path, "model", TENSORS)
    files = TensorFiles(tmp_path)
    view = files.called({"weight": "a.weight", "other": "b"}).called({"w": "weight", "b": "other"})
    assert list(view.specs) == ["b", "w"]
    assert view.specs["w"] == TensorSpec("float32", (7, 5))
    assert torch.equal(view.read("w"), TENSORS["a.weight"])
    assert torch.equal(view.read("b"), TENSORS["b"])
    assert (view.stored_name("w"), view.stored_name("b"), files.stored_name("b")) == ("a.weight", "b", "b")
    assert fingerprint(view) == fingerprint(TensorFiles(tmp_path))
    assert view.digests is files.digests
    with pytest.raises(KeyError):
        files.called({"x": "nothing"})


def test_a_pointer_of_git_lfs_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    with pytest.raises(
        InputError, match=r"model\.safetensors: is a Git LFS pointer, not the file itself; run `git lfs"
    ):
        TensorFiles(tmp_path)
    (tmp_path / "model.safetensors").write_text("version 2 of something else, at least as long as that")
    with pytest.raises(InputError, match="not a whole safetensors file"):
        TensorFiles(tmp_path)
