"""How good a run is, how sure that is, and what would help most, in two sentences."""

from collections.abc import Sequence

from distgan.config.metrics import EVALUATION_METRICS
from distgan.config.recipe import default_kimg
from distgan.reporting.metrics import metric_label
from distgan.reporting.run_record import GOOD_VERDICTS, RunRecord
from distgan.run.files import EvaluationRow
from distgan.text import format_number, is_number, pluralize

FEATURES = {
    "random-conv": "random features, which hardly see what an image shows",
    "probe": "features of a classifier of these images",
    "inception": "Inception features",
}
BETTER = 0.95  # a distance below this fraction of an earlier one is clearly better
RECENT = 3  # the last third of the evaluations shows whether a run still improves


def summarize(record: RunRecord) -> str:
    """Return the sentences, or nothing before the first evaluation.

    The verdict's explanation says what to do about a problem. Without one, the second sentence says
    what would help most.
    """
    name = record.best_metric
    rows = [row for row in record.comparable_evaluations if is_number(row.values.get(name))]
    if not rows:
        return ""
    sentences = [f"{describe_score(name, rows)}; {describe_certainty(record, rows)}."]
    if record.verdict in GOOD_VERDICTS:
        sentences.append(describe_advice(record, [row.values[name] for row in rows]))
    return " ".join(sentences)


def describe_score(name: str, rows: Sequence[EvaluationRow]) -> str:
    """Return the last value of a metric between those of the first evaluation and of reals."""
    last, label = rows[-1], metric_label(name)
    scale = [f"{EVALUATION_METRICS[name].better} is better"]
    if name in last.reals:
        scale.append(f"real images score {format_number(last.reals[name], digits=2)}")
    if len(rows) > 1:
        first = format_number(rows[0].values[name], digits=2)
        scale.append(f"this run's first evaluation scored {first}")
    value = format_number(last.values[name], digits=2)
    return f"The {label} of the generated images is {value} ({', '.join(scale)})"


def describe_certainty(record: RunRecord, rows: Sequence[EvaluationRow]) -> str:
    """Return how many images and evaluations the verdict rests on, and in which features."""
    protocol = rows[-1].protocol
    extractor = protocol.get("extractor", "unknown")
    features = FEATURES.get(extractor, f"{extractor} features")
    num_fakes = protocol.get("num_fakes")
    images = pluralize(num_fakes, "image") if isinstance(num_fakes, int) else "some images"
    changes = [event.images_seen for event in record.events if event.kind == "verdict"]
    agreeing = sum(row.images_seen >= max(changes, default=0) for row in rows)
    if not agreeing:
        return f"the verdict is newer than the last evaluation, of {images} in {features}"
    if agreeing == 1:
        return f"only the last evaluation gives this verdict, from {images} in {features}"
    which = f"the last {agreeing} of {len(rows)}" if agreeing < len(rows) else f"all {agreeing}"
    return f"{which} evaluations give this verdict, each from {images} in {features}"


def describe_advice(record: RunRecord, values: Sequence[float]) -> str:
    """Return what would help a run without problems most."""
    sign = -1 if EVALUATION_METRICS[record.best_metric].better == "higher" else 1
    costs = [sign * value for value in values]
    recent = max(1, len(costs) // RECENT)
    earlier, latest = min(costs[:-recent], default=None), min(costs[-recent:])
    if earlier is None:
        return (
            "One evaluation does not show whether the run was still improving; if it was, training "
            f"to train.kimg={longer_kimg(record)} would help most."
        )
    if latest < earlier - (1 - BETTER) * abs(earlier):
        longer = longer_kimg(record)
        return f"The run was still improving, so training to train.kimg={longer} would help most."
    return (
        "The run has stopped improving, so more images would help most, or other settings: "
        "see docs/remedies.md."
    )


def longer_kimg(record: RunRecord) -> str:
    """Return a better length: what suits the number of images, and at least twice the run's own."""
    kimg = max(2 * record.images_seen / 1000, default_kimg(record.images_per_epoch))
    return f"{kimg:.10g}"
