"""Files that a disk has damaged, or somebody has exchanged: found by who reads them, and made good again."""

import os
import shutil
import time
from hashlib import md5
from itertools import cycle
from pathlib import Path

import pytest

from tests.faults.faults import DAMAGES, assert_refused, assert_whole, cached, damage, kill_both
from tests.faults.process import Process
from tests.faults.table import Trials
from tests.faults.undisturbed import SAVING, STAGES, Undisturbed, remove
from tests.project import Project

# What is damaged: of which stage, a stage that reads it, and how.
READ = {
    "data/sources/base/model.safetensors": ("fetch@base", "finetune-books", list(DAMAGES)),
    "data/sources/base/tokenizer.json": ("fetch@base", "finetune-books", ["bit-flipped"]),
    "data/tasks/books/train.arrow": ("prepare@books", "finetune-books", list(DAMAGES)),
    "data/tasks/books/task.json": ("prepare@books", "finetune-books", list(DAMAGES)),
    "models/finetuned/books/config.json": ("finetune-books", "evaluate-books", ["bit-flipped"]),
    "models/finetuned/books/checkpoint.json": ("finetune-books", "merge-blocks", ["bit-flipped"]),
    "models/finetuned/books/model.safetensors": ("finetune-books", "evaluate-books", ["bit-flipped"]),
    "models/fishers/books/fisher.safetensors": ("fisher-books", "merge-blocks", list(DAMAGES)),
    "models/kfac/books/kfac.safetensors": ("kfac-books", "merge-blocks", list(DAMAGES)),
    "results/search/blocks/coefficients.json": ("search-blocks", "merge-blocks", list(DAMAGES)),
    "results/eval/books/metrics.json": ("evaluate-books", "scores", list(DAMAGES)),
    "results/scores/contents.json": ("scores", "report", ["bit-flipped"]),
    "results/scores/scores.json": ("scores", "report", ["bit-flipped"]),
}


def run(project: Project, stage: str) -> str:
    """What a stage says that is run by hand and fails."""
    result = project.stage(*STAGES[stage].split())
    assert result.returncode != 0
    return result.stderr


@pytest.mark.parametrize("kind", DAMAGES)
def test_damaged_outputs_come_back_from_the_cache(
    undisturbed: Undisturbed, trials: Trials, tmp_path: Path, kind: str
) -> None:
    """Where DVC can see that they are others: by their times."""
    project = undisturbed.copy(tmp_path)
    with trials.of(*STAGES) as faults:
        faults.append(f"output {kind}")
        for stage in STAGES:
            file = project.root / undisturbed.largest_output(stage)
            damage(file, kind)
            os.utime(file)
        assert project.repro() == []
        undisturbed.assert_same(project)


@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name, (*_, kinds) in READ.items() for kind in kinds])
def test_damage_that_dvc_cannot_see_is_refused_by_the_reader(
    undisturbed: Undisturbed, trials: Trials, tmp_path: Path, name: str, kind: str
) -> None:
    maker, reader, _ = READ[name]
    project = undisturbed.copy(tmp_path)
    assert project.repro() == []  # DVC now knows the files by their times
    with trials.of(maker) as faults:
        faults.append(f"unseen: output {kind}")
        damage(project.root / name, kind)
        said = run(project, reader)
        assert name in said
        assert_refused(said)
        remove((project.root / name).parent)  # as the message says
        assert project.repro() == []
        undisturbed.assert_same(project)


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_cache_is_found_and_filled_from_the_remote(
    undisturbed: Undisturbed, trials: Trials, tmp_path: Path, kind: str
) -> None:
    project = undisturbed.copy(tmp_path)
    project.run("dvc", "remote", "add", "--local", "--default", "team", str(tmp_path / "remote"))
    project.run("dvc", "push", "--run-cache")
    with trials.of(*STAGES) as faults:
        faults.append(f"cache file {kind}")
        damaged = [damage_cached(undisturbed, project, stage, kind) for stage in STAGES]
        for stage in STAGES:
            for path in undisturbed.outputs[stage]:
                remove(project.root / path)
        said = project.run("python", "-m", "stages.check_cache").stdout
        assert sorted(line.split()[1] for line in said.splitlines() if line.startswith("removed")) == sorted(damaged)
        assert project.repro("--pull") == []
        undisturbed.assert_same(project)
        assert_whole(cached(project))


def test_a_damaged_cache_without_a_remote_is_made_again(
    undisturbed: Undisturbed, trials: Trials, tmp_path: Path
) -> None:
    project = undisturbed.copy(tmp_path)
    stages = ("prepare@books", "merge-blocks", "report")
    with trials.of(*stages) as faults:
        faults.append("cache file bit-flipped, no remote")
        for stage in stages:
            damage_cached(undisturbed, project, stage, "bit-flipped")
            for path in undisturbed.outputs[stage]:
                remove(project.root / path)
        project.run("python", "-m", "stages.check_cache")
        assert project.repro() == list(stages)
        undisturbed.assert_same(project)
        assert_whole(cached(project))


def damage_cached(undisturbed: Undisturbed, project: Project, stage: str, kind: str) -> str:
    """Damage the stage's largest file in the cache. Returns where it is."""
    content = (project.root / undisturbed.largest_output(stage)).read_bytes()
    file = undisturbed.cached(project, md5(content).hexdigest())
    damage(file, kind)
    return str(file)


@pytest.mark.parametrize(("stage", "kind"), zip(SAVING, cycle(DAMAGES), strict=False))
def test_damaged_progress_is_not_used(
    undisturbed: Undisturbed, trials: Trials, tmp_path: Path, stage: str, kind: str
) -> None:
    project = undisturbed.stale(tmp_path, stage)
    with trials.of(stage) as faults:
        faults.append(f"progress {kind}")
        process = Process(project, "dvc", "repro", program="stages.")
        kill_both(process, process.stop_at("saving", 5))
        saved = [
            *project.root.glob("models/*/.partial-*.training/checkpoint-4/optimizer.pt"),
            *project.root.glob("*/*/.partial-*.safetensors"),
        ]
        assert len(saved) == 1
        damage(saved[0], kind)
        assert project.repro() == [stage]
        undisturbed.assert_same(project)


@pytest.mark.parametrize(("folder", "stage"), [("models/fishers", "fisher-books"), ("models/kfac", "kfac-books")])
def test_another_models_statistic_is_refused(
    undisturbed: Undisturbed, trials: Trials, tmp_path: Path, folder: str, stage: str
) -> None:
    project = undisturbed.copy(tmp_path)
    with trials.of(stage) as faults:
        faults.append("swapped for another model's")
        one, other, aside = (project.root / folder / name for name in ("books", "tomes", "aside"))
        one.rename(aside)
        other.rename(one)
        aside.rename(other)
        said = run(project, "merge-blocks")
        assert "belongs to the checkpoint" in said
        assert "estimate the " in said
        assert "Traceback" not in said
        assert project.repro() == []
        undisturbed.assert_same(project)


def test_times_do_not_matter(undisturbed: Undisturbed, trials: Trials, tmp_path: Path) -> None:
    """A clock that was wrong, and is put back: files from the future, and a stage that runs a year ago."""
    project = undisturbed.copy(tmp_path)
    year = 365 * 86400
    with trials.of(*STAGES) as faults:
        faults.append("files from the future and the past")
        for number, file in enumerate(sorted(project.root.rglob("*"))):
            if file.is_file() and ".git/" not in str(file):
                moment = time.time() + year * (-1) ** number
                os.utime(file, (moment, moment))
        assert project.repro() == []
        undisturbed.assert_same(project)
    for stage in ("prepare@books", "merge-blocks", "report"):
        with trials.of(stage) as faults:
            faults.append("clock put back")
            shutil.rmtree(project.root)
            project = undisturbed.stale(tmp_path, stage)
            process = Process(project, "dvc", "repro", program="stages.", stop=False, clock=-year)
            assert process.wait() == 0, process.output
            undisturbed.assert_same(project)


@pytest.mark.parametrize("link", ["hardlink", "symlink"])
def test_writing_an_output_that_is_a_link_leaves_the_cache_alone(
    undisturbed: Undisturbed, trials: Trials, tmp_path: Path, link: str
) -> None:
    """By hand, beside DVC, which would remove the output first."""
    project = undisturbed.copy(tmp_path)
    project.run("dvc", "config", "--local", "cache.type", link)
    project.run("dvc", "checkout", "--relink")
    stages = ("fetch@base", "merge-blocks", "report")
    with trials.of(*stages) as faults:
        faults.append(f"written over a {link}")
        for stage in stages:
            linked = project.root / undisturbed.largest_output(stage)
            assert linked.is_symlink() if link == "symlink" else linked.stat().st_nlink > 1
            assert project.stage(*STAGES[stage].split()).returncode == 0
            assert not linked.is_symlink()
            assert linked.stat().st_nlink == 1
            linked.write_bytes(b"of no interest to the cache")
        assert_whole(cached(project))
        assert project.repro() == []
        undisturbed.assert_same(project)
