"""A team with one cache on one host."""

from pathlib import Path

from tests.project import Project


def test_one_cache_on_one_host(finished: Project, tmp_path: Path) -> None:
    first = finished.copy(tmp_path / "first")
    neighbour = first.clone("neighbour")
    neighbour.run("dvc", "cache", "dir", "--local", str(first.root / ".dvc/cache"))
    assert neighbour.repro() == []
    assert (neighbour.root / "results/report/report.html").is_file()
    neighbour.edit_params(lambda params: params["merges"]["fisher"]["coefficients"].update(films=0.3))
    assert neighbour.repro() == ["settings", "merge-fisher", "evaluate-fisher", "scores", "report"]
    first.edit_params(lambda params: params["merges"]["fisher"]["coefficients"].update(films=0.3))
    assert first.repro() == []
