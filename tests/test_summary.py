"""The first screen of a report: how good the run is, how sure that is, and what would help most."""

import json
from pathlib import Path

import pytest

from distgan.config.flat import to_toml
from distgan.config.schema import Config, Evaluation
from distgan.reporting.comparison import group_runs, result_cells
from distgan.reporting.metrics import explain_distance
from distgan.reporting.run_record import read_record
from distgan.reporting.summary import summarize
from tests.reports import report_text


def write_run(folder: Path, distances: list[float], *, verdict: str, since: int = 0) -> Path:
    """Write a run with these Fréchet distances, whose verdict is that since an evaluation."""
    folder.mkdir()
    (folder / "config.toml").write_text(to_toml(Config()))
    status = {"state": "done", "verdict": verdict, "images_seen": 1000 * len(distances)}
    (folder / "status.json").write_text(json.dumps(status))
    rows = [
        {
            "progress/images": 1000 * (number + 1),
            "values": {"quality/frechet": distance},
            "reals": {"quality/frechet": 0.04},
            "protocol": {"extractor": "probe", "num_fakes": 2000},
        }
        for number, distance in enumerate(distances)
    ]
    (folder / "evaluations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    event = {"kind": "verdict", "images_seen": 1000 * (since + 1), "what": "x", "verdict": verdict}
    (folder / "events.jsonl").write_text(json.dumps(event) + "\n")
    return folder


def test_the_summary_places_the_score_and_counts_agreeing_evaluations(tmp_path: Path) -> None:
    """The last value is between those of reals and of the first evaluation."""
    run = write_run(tmp_path / "run", [1.2, 0.8, 0.5, 0.31], verdict="healthy", since=2)
    text = summarize(read_record(run))
    assert text.startswith(
        "The Fréchet distance of the generated images is 0.31 (lower is better, real images score "
        "0.04, this run's first evaluation scored 1.2); "
    )
    assert (
        "the last 2 of 4 evaluations give this verdict, each from 2,000 images in features of"
        in text
    )
    assert text.count(". ") == 1
    assert text in report_text(run).replace("&#39;", "'")


def test_evaluations_that_were_made_otherwise_are_not_compared(tmp_path: Path) -> None:
    """Those in other features or of fewer images neither count nor are the best."""
    run = write_run(tmp_path / "run", [0.1, 1.2, 0.8], verdict="healthy")
    file = run / "evaluations.jsonl"
    first, *others = file.read_text().splitlines()
    file.write_text("\n".join([first.replace('"probe"', '"random"'), *others]) + "\n")
    record = read_record(run)
    assert record.best_evaluation is not None
    assert record.best_evaluation.values["quality/frechet"] == 0.8
    text = summarize(record)
    assert "first evaluation scored 1.2" in text and "all 2 evaluations" in text
    assert record.curve("quality/frechet") == ([2.0, 3.0], [1.2, 0.8])
    page = report_text(run)
    assert "the best of 2 evaluations" in page and "Earlier evaluations were made in" in page


def test_features_of_an_earlier_evaluation_do_not_name_the_score(tmp_path: Path) -> None:
    """A run whose later evaluations have no FID has a best Fréchet distance, also in tables."""
    run = write_run(tmp_path / "run", [9.0, 1.2, 0.8], verdict="healthy")
    file = run / "evaluations.jsonl"
    first, *others = file.read_text().splitlines()
    first = first.replace("quality/frechet", "quality/fid").replace('"probe"', '"inception"')
    file.write_text("\n".join([first, *others]) + "\n")
    record = read_record(run)
    assert record.best_metric == "quality/frechet"
    (group,) = group_runs([record])
    assert "best Fréchet distance" in group.columns
    assert "0.8" in [cell.text for cell in group.results[0]]


def test_a_row_of_the_comparison_is_one_evaluation(tmp_path: Path) -> None:
    """Distance and coverage are those of the best checkpoint, whatever makes it the best."""
    run = write_run(tmp_path / "run", [0.3, 0.9], verdict="healthy")
    settings = Config(evaluation=Evaluation(best_metric="quality/coverage"))
    (run / "config.toml").write_text(to_toml(settings))
    file = run / "evaluations.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row, coverage in zip(rows, (0.4, 0.8), strict=True):
        row["values"]["quality/coverage"] = coverage
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts = [cell.text for cell in result_cells(read_record(run), "quality/frechet")]
    assert "0.9" in texts and "0.8" in texts and "0.3" not in texts


@pytest.mark.parametrize(
    ("distances", "verdict", "expected"),
    [
        ([1.2, 0.8, 0.5], "learning", "training to train.kimg=100 would help most"),
        ([2.0 / n for n in range(1, 81)], "healthy", "training to train.kimg=160 would"),
        ([1.2, 0.5, 0.5, 0.5, 0.6, 0.5], "healthy", "more images would help most"),
        ([1.2], "learning", "training to train.kimg=100 would help most"),
        ([1.2], "learning", "One evaluation does not show whether the run was still improving"),
    ],
)
def test_the_advice_follows_from_the_curve(
    distances: list[float], verdict: str, expected: str, tmp_path: Path
) -> None:
    """Train for longer while it helps; something else afterwards."""
    run = write_run(tmp_path / "run", distances, verdict=verdict)
    assert expected in summarize(read_record(run))


def test_a_problem_has_the_advice_of_its_verdict_alone(tmp_path: Path) -> None:
    """The page does not recommend training on a collapsed generator."""
    run = write_run(tmp_path / "run", [1.2, 0.5], verdict="complete collapse")
    assert "help most" not in summarize(read_record(run))
    assert "collapse.action=rollback" in report_text(run)


def test_a_run_without_evaluations_has_no_summary(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [], verdict="")
    assert summarize(read_record(run)) == ""
    assert 'id="quality"' not in report_text(run)


def test_a_metric_that_cannot_rank_chooses_no_evaluation(tmp_path: Path) -> None:
    """Runs of older versions may have recorded one of which neither way is better."""
    run = write_run(tmp_path / "run", [1.2, 0.8, 0.9], verdict="healthy")
    settings = to_toml(Config(evaluation=Evaluation(best_metric="diversity/spread")))
    (run / "config.toml").write_text(settings)
    record = read_record(run)
    assert record.best_metric == "quality/frechet"
    assert record.best_evaluation is not None
    assert record.best_evaluation.images_seen == 2000


def test_a_distance_is_explained_with_the_value_of_real_images() -> None:
    """In the features at hand; without a distance nothing is explained."""
    text = explain_distance({"quality/fid": 90.0}, {"quality/fid": 2.5})
    assert text.startswith("FID: ")
    assert "Lower is better; real images score 2.5." in text
    assert explain_distance({"quality/coverage": 1.0}, {"quality/coverage": 1.0}) == ""
