"""Tables of images: what is read, how it is split, corrupted and kept."""

import gzip
import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from stages.params import parse_params
from stages.running.errors import InputError
from stages.storage.cards import read_json
from stages.storage.digests import tree_sha256
from stages.tasks.arrow import write_rows
from stages.tasks.data import TaskData
from stages.tasks.kinds.image_classification.images import images, read_images
from stages.tasks.kinds.image_classification.settings import ImageClassification
from stages.tasks.table_files import Table
from stages.tasks.task import Split
from tests.tasks.in_memory import split_examples, write_task
from tests.tiny import pixel_table, stripes
from tests.workshop import task_of

Splits = dict[Split, pd.DataFrame]


def task(**settings: Any) -> ImageClassification:
    content = {"kind": "image-classification", "source": "s", "labels": ["across", "down"]}
    return ImageClassification.model_validate(content | {"file": "t.csv", "image": {"pixels": [8, 8]}} | settings)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pixel_table(*stripes(100, 0)).to_csv(tmp_path / "t.csv", index=False)
    return tmp_path


def of_file(table: pd.DataFrame) -> Table:
    return Table(table, Path("t.parquet"), lambda row: f"row {row + 1}")


def everything(splits: Splits) -> list[bytes]:
    return [pixels for frame in splits.values() for pixels in frame["pixels"]]


def encoded(image: np.ndarray, form: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, format=form)
    return file.getvalue()


def test_pixels_in_columns(folder: Path) -> None:
    splits, dropped = split_examples(task(), folder)
    assert {split: len(frame) for split, frame in splits.items()} == {"train": 70, "validation": 15, "test": 15}
    label_of = {image.tobytes(): label for image, label in zip(*stripes(100, 0), strict=True)}
    assert len(set(everything(splits))) == 100
    for frame in splits.values():
        assert 0.4 < frame["label"].mean() < 0.6
        for image, label in zip(images(frame), frame["label"], strict=True):
            assert image.shape == (8, 8, 1)
            assert label_of[image.tobytes()] == ["across", "down"][label]
    assert dropped == {"label_not_of_the_task": 0, "repeated_image": 0}


@pytest.mark.parametrize("columns", [["pixels", "label"], ["label", "pixels"]])
def test_a_compressed_table_without_a_header(folder: Path, columns: list[str]) -> None:
    table = pixel_table(*stripes(100, 0))
    if columns[0] == "label":
        table = table[["label", *table.columns[:-1]]]
    with gzip.open(folder / "t.csv.gz", "wt") as file:
        table.to_csv(file, index=False, header=False)
    wanted, _ = split_examples(task(), folder)
    found, _ = split_examples(task(file="t.csv.gz", columns=columns), folder)
    assert all(found[split].equals(wanted[split]) for split in wanted)


def test_compressed_lines_of_json(tmp_path: Path) -> None:
    table = pixel_table(*stripes(40, 0)).rename(columns=str)
    with gzip.open(tmp_path / "t.jsonl.gz", "wt") as file:
        table.to_json(file, orient="records", lines=True)
    splits, _ = split_examples(task(file="t.jsonl.gz"), tmp_path)
    assert len(everything(splits)) == 40


@pytest.mark.parametrize("wrapped", [False, True])
def test_encoded_images(tmp_path: Path, wrapped: bool) -> None:
    """As Hugging Face's data sets have them, or as bytes; every one keeps its size and colours."""
    random = np.random.default_rng(0)
    shapes = [(5, 6, 3) if row % 3 else (7, 4) for row in range(40)]
    found = [random.integers(0, 256, shape).astype(np.uint8) for shape in shapes]
    cells = [{"bytes": encoded(image), "path": None} if wrapped else encoded(image) for image in found]
    pd.DataFrame({"img": cells, "label": [row % 2 for row in range(40)]}).to_parquet(tmp_path / "t.parquet")
    splits, _ = split_examples(task(file="t.parquet", image={"column": "img"}), tmp_path)
    read = {image.tobytes(): image for frame in splits.values() for image in images(frame)}
    assert len(read) == 40
    for image in found:
        assert (read[image.tobytes()].squeeze() == image).all()


def test_lossy_transparent_and_turned_images(tmp_path: Path) -> None:
    smooth = np.repeat(np.linspace(0, 255, 16).astype(np.uint8)[:, None], 24, axis=1)
    turned = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # a camera held upright: to be turned clockwise
    Image.fromarray(smooth).save(turned, format="JPEG", quality=95, exif=exif)
    clear = np.dstack([smooth, smooth, smooth, np.full_like(smooth, 9)])
    table = pd.DataFrame({"img": [encoded(smooth, "JPEG"), turned.getvalue(), encoded(clear)]})
    first, second, third = images(read_images(task(image={"column": "img"}), of_file(table)))
    assert np.abs(first[..., 0].astype(int) - smooth).max() <= 3
    assert second.shape == (24, 16, 1)
    assert np.abs(second[..., 0].astype(int) - np.rot90(smooth, -1)).max() <= 3
    assert (third == clear[..., :3]).all()


def test_images_can_be_brought_to_one_size(tmp_path: Path) -> None:
    flat = [np.full((size, 2 * size, 3), (10, 100, 200), dtype=np.uint8) for size in (5, 8, 20)]
    table = pd.DataFrame({"img": [encoded(image) for image in flat]})
    where = {"column": "img", "size": [8, 6]}
    for image in images(read_images(task(image=where), of_file(table))):
        assert (image == np.full((8, 6, 3), (10, 100, 200))).all()


def test_repeated_images_are_in_one_split_only(folder: Path) -> None:
    table = pixel_table(*stripes(100, 0))
    pd.concat([table, table.iloc[:30]]).to_csv(folder / "t.csv", index=False)
    splits, dropped = split_examples(task(), folder)
    assert dropped["repeated_image"] == 30
    assert len(everything(splits)) == len(set(everything(splits))) == 100


def test_corrupted_images_are_in_the_splits_of_the_clean_ones(folder: Path) -> None:
    clean, _ = split_examples(task(), folder)
    found, _ = split_examples(task(corruptions=[{"invert": True}, {"translate": [1, 0]}]), folder)
    for split, frame in clean.items():
        assert (found[split]["label"] == frame["label"]).all()
        for before, after in zip(images(frame), images(found[split]), strict=True):
            assert (after[1:] == 255 - before[:-1]).all()


def test_what_is_random_depends_on_the_image_and_the_seed_alone(folder: Path) -> None:
    noisy: dict[str, Any] = {"corruptions": [{"gaussian_noise": 0.2}]}

    def noise(**settings: Any) -> dict[bytes, bytes]:
        """By image, its corrupted pixels."""
        clean, _ = split_examples(task(**settings), folder)
        found, _ = split_examples(task(**noisy, **settings), folder)
        return dict(zip(everything(clean), everything(found), strict=True))

    everywhere = noise()
    fewer = noise(part=[0.3, 0.8], examples=40)
    assert len(fewer) == 40
    assert fewer.items() <= everywhere.items()
    assert everywhere == noise()
    other = noise(split={"seed": 1})
    assert not any(other[image] == pixels for image, pixels in everywhere.items())
    differences = {
        (np.frombuffer(after, np.uint8).astype(int) - np.frombuffer(before, np.uint8))[:8].tobytes()
        for before, after in everywhere.items()
    }
    assert len(differences) > 90  # no two images with the same noise


def test_parts_have_no_image_in_common_and_together_all(folder: Path) -> None:
    halves = [split_examples(task(part=part), folder)[0] for part in ([0, 0.5], [0.5, 1])]
    first, second = (set(everything(half)) for half in halves)
    assert 35 < len(first) < 65
    assert not first & second
    assert len(first | second) == 100
    again, _ = split_examples(task(part=[0, 0.5], corruptions=[{"invert": True}]), folder)
    assert [bytes(255 - value for value in pixels) for pixels in everything(again)] == everything(halves[0])
    assert first != {image.tobytes() for image in stripes(100, 0)[0][:50]}  # not simply the first rows


def test_parts_of_official_splits(tmp_path: Path) -> None:
    for number, (split, rows) in enumerate({"train": 60, "test": 20}.items()):
        pixel_table(*stripes(rows, number)).to_csv(tmp_path / f"{split}.csv", index=False)
    files = {"train": "train.csv", "test": "test.csv"}
    halves = [split_examples(task(file=files, part=part), tmp_path)[0] for part in ([0, 0.5], [0.5, 1])]
    first, second = (set(everything(half)) for half in halves)
    assert not first & second
    assert sum(len(half["test"]) for half in halves) == 20


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda table: table.assign(extra=1), r"has 65 columns beside the label's, but an image of \[8, 8\] has 64"),
        (lambda table: table.drop(columns="label"), "has no column 'label'"),
        (lambda table: table.assign(**{"3": 256}), "line 2: pixel 4 = '256' is no whole number from 0 to 255"),
        (lambda table: table.assign(**{"3": 0.5}), "line 2: pixel 4 = '0.5' is no whole number"),
        (lambda table: table.assign(**{"3": "x"}), "line 2: pixel 4 = 'x' is no whole number"),
        (lambda table: table.assign(**{"3": ""}), "line 2: pixel 4 = '' is no whole number"),
    ],
)
def test_bad_pixels(tmp_path: Path, edit: Any, message: str) -> None:
    edit(pixel_table(*stripes(20, 0)).rename(columns=str)).to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(InputError, match=message):
        split_examples(task(), tmp_path)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (b"no image", "row 1: img cannot be read as PNG, JPEG, WEBP, BMP"),
        (encoded(stripes(1, 0)[0][0])[:70], "row 1: img cannot be read as PNG"),
        (encoded(np.zeros((9, 9), dtype=np.uint8), "TIFF"), "row 1: img cannot be read as PNG"),
        (encoded(np.zeros((9, 9), dtype=np.uint16)), "row 1: img has more than 8 bits a channel"),
        ("a.png", "row 1: img has no bytes of an image"),
        ({"bytes": None, "path": "a.png"}, "row 1: img has no bytes of an image"),
    ],
    ids=["other bytes", "cut short", "another format", "16 bits", "a name", "a name beside no bytes"],
)
def test_bad_images(tmp_path: Path, cell: object, message: str) -> None:
    pd.DataFrame({"img": [cell], "label": [0]}).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(InputError, match=message) as caught:
        split_examples(task(file="t.parquet", image={"column": "img"}), tmp_path)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="has no column 'x'; its columns: img, label"):
        split_examples(task(file="t.parquet", image={"column": "x"}), tmp_path)


def test_a_damaged_compressed_table(tmp_path: Path) -> None:
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(b"label\n0\n")[:15])
    with pytest.raises(InputError, match="cannot be read as a table"):
        split_examples(task(file="t.csv.gz"), tmp_path)


def test_a_prepared_task_is_read_as_it_was_written(folder: Path, tmp_path: Path) -> None:
    settings = task(corruptions=[{"gaussian_noise": 0.1}])
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        splits, dropped = split_examples(settings, folder)
        write_task(tmp_path / name, settings, splits, dropped)
    assert tree_sha256(tmp_path / "a") == tree_sha256(tmp_path / "b")
    data = TaskData.open(tmp_path / "a")
    assert (data.kind, data.labels) == ("image-classification", ("across", "down"))
    assert read_json(tmp_path / "a" / "task.json")["corruptions"] == [{"gaussian_noise": 0.1}]
    assert all(data.read(split).equals(splits[split]) for split in splits)
    assert (tmp_path / "a" / "train.arrow").stat().st_size < 70 * 64 + 8000
    changed = splits["test"].assign(pixels=splits["test"]["pixels"].map(lambda pixels: pixels[::-1]))
    write_rows(tmp_path / "a" / "test.arrow", [changed])
    with pytest.raises(InputError, match=r"its contents are not what task\.json says"):
        data.read("test")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image": None}, r"tasks\.t\.image = None: .*a valid dictionary or instance of Images"),
        ({"image": {}}, r"image: give exactly one of column, pixels"),
        ({"image": {"column": "img", "pixels": [8, 8]}}, "image: give exactly one of column, pixels"),
        ({"image": {"pixels": [8, 8, 2]}}, "an image has 1 or 3 channels, not 2"),
        ({"image": {"column": "label"}}, "`image.column` and `label` must be different columns"),
        (
            {"image": {"colum": "img"}},
            r"image\.colum: unknown key; .*\(did you mean column",
        ),
        ({"columns": ["a", "label"]}, "`columns` must have `pixels` once"),
        (
            {"text": "words"},
            r"text: is for tasks of the kind .* or text-classification .*, and this",
        ),
        ({"max_length": 12}, "max_length: is for tasks of the kind .* or text-classification"),
        ({"kind": "text-classification"}, "image: is for tasks of the kind image-classification"),
        ({"corruptions": [{}]}, r"corruptions\.0: a corruption is exactly one of invert, rotate"),
        ({"corruptions": [{"invert": True, "rotate": 3.0}]}, r"corruptions\.0: a corruption is exactly one of"),
        ({"corruptions": [{"rotat": 3.0}]}, r"corruptions\.0\.rotat: unknown key; .*\(did you mean rotate"),
        ({"corruptions": [{"gaussian_blur": 0.0}]}, r"corruptions\.0\.gaussian_blur = 0\.0: .*greater than 0"),
        ({"part": [0.5, 0.5]}, r"`part`: \[0\.5, 0\.5\] is empty"),
        ({"part": [0.5, 1.5]}, r"part\.1 = 1\.5: .*less than or equal to 1"),
    ],
)
def test_tasks_that_are_refused(settings: dict[str, Any], message: str) -> None:
    entry = {"kind": "image-classification", "source": "s", "file": "f.csv", "labels": ["a", "b"]}
    content = {
        "sources": {"s": {"path": "p", "sha256": "0" * 64}},
        "tasks": {"t": {**entry, "image": {"pixels": [8, 8]}, **settings}},
        "models": {},
    }
    with pytest.raises(InputError, match=message) as caught:
        parse_params(content)
    assert str(caught.value).startswith("params.yaml: tasks.t")


def test_texts_have_parts_too(tmp_path: Path) -> None:
    pd.DataFrame({"text": [f"text {row}" for row in range(40)], "label": [0, 1] * 20}).to_csv(tmp_path / "t.csv")
    content = {"source": "s", "file": "t.csv", "labels": ["a", "b"]}
    halves = [task_of(content | {"part": part}) for part in ([0, 0.5], [0.5, 1])]
    first, second = (set(pd.concat(split_examples(half, tmp_path)[0].values())["text"]) for half in halves)
    assert len(first) + len(second) == 40
    assert not first & second
    # By content, so that it does not matter in which table a text stands, and beside what.
    unlabelled = {"kind": "masked-lm", "source": "s", "file": ["more.csv", "t.csv"], "part": [0.5, 1]}
    pd.DataFrame({"text": [f"more {row}" for row in range(50)], "label": 0}).to_csv(tmp_path / "more.csv")
    joined = set(pd.concat(split_examples(task_of(unlabelled), tmp_path)[0].values())["text"])
    assert joined > second
    assert not joined & first
