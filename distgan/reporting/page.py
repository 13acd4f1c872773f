"""The page of one run: a single HTML file that needs no network, made from the run folder alone.

run folder -> RunRecord -> charts (SVG), images (base64) and tables -> report.html.j2 -> report.html
"""

from pathlib import Path
from typing import Any

import torch
from PIL import Image

from distgan.config.metrics import EVALUATION_METRICS
from distgan.errors import UserError
from distgan.evaluation.verdict import EXPLANATIONS
from distgan.images import grid_pixels
from distgan.networks.base import DiscriminatorSpec
from distgan.networks.build import build_discriminator, build_generator
from distgan.networks.mixture import MixtureSpec, spec_from_dict
from distgan.reporting.charts import run_charts
from distgan.reporting.classes import class_table, last_scores, rows_of_grid
from distgan.reporting.curves import Mark, draw
from distgan.reporting.metrics import metric_label
from distgan.reporting.nearest import find_nearest
from distgan.reporting.rendering import image_file_uri, image_uri, pick_evenly, render, write_page
from distgan.reporting.run_record import GOOD_VERDICTS, RunRecord
from distgan.reporting.summary import summarize
from distgan.run.files import Event
from distgan.text import format_duration, format_epochs, format_kimg, format_number, pluralize
from shards.errors import ShardError

REPORT_FILE = "report.html"
MAX_FRAMES = 24  # of the timeline of samples
MAX_NUMBERED = 12  # events that have numbers in the charts
BAD_KINDS = ("warning", "failed", "collapsed", "rollback")
NOT_SEARCHED = "Not searched, because the run was interrupted. distgan report searches them."


def write_report(record: RunRecord, out: Path, *, search_nearest: bool = True) -> Path:
    """Write the page of a run; raises OSError.

    The search for the nearest real images reads thousands of images, which takes seconds.
    """
    text = render_report(record, nearest_note=None if search_nearest else NOT_SEARCHED)
    return write_page(out, text)


def render_report(record: RunRecord, *, nearest_note: str | None, is_live: bool = False) -> str:
    """Return the page of a run. With `nearest_note` it has that text instead of a search."""
    nearest = nearest_images(record) if nearest_note is None else None
    return render(
        "report.html.j2",
        nearest=nearest or {"caption": nearest_note, "uri": None},
        is_live=is_live,
        **page_values(record),
    )


def page_values(record: RunRecord) -> dict[str, Any]:
    """Return everything that the template shows, except for the nearest real images."""
    events = [event for event in record.events if event.kind != "done"]
    marks = [event_mark(event, number, len(events)) for number, event in enumerate(events, start=1)]
    return {
        "title": record.name,
        "run": record,
        "verdict_meaning": EXPLANATIONS.get(record.verdict, ""),
        "summary": summarize(record),
        "facts": facts(record),
        "has_tiny_images": record.image_shape is not None and record.image_shape[2] < 64,
        "frames": frames(record),
        "reals": image_file_uri(record.path / "samples" / "reals.png"),
        "drawings": [
            draw(chart, epochs=epoch_marks(record), events=marks) for chart in run_charts(record)
        ],
        "events": [(event, is_bad(event)) for event in events],
        "metrics": metric_rows(record),
        "classes": class_table(last_scores(record)),
        "rows_of_grid": rows_of_grid(record),
    }


def facts(record: RunRecord) -> list[tuple[str, str, str]]:
    """Return (what, value, details) of each box at the top of the page."""
    world, spec = record.provenance.world, record.description.generator
    epochs, num_images = record.last("progress/epoch"), record.images_per_epoch
    length = [f"{record.images_seen:,} images"]
    length += [format_epochs(epochs, digits=3)] if epochs else []
    speed = f"{format_number(round(record.images_per_sec))} images/s" if record.train_sec else ""
    return [
        ("Dataset", f"{num_images:,} images" if num_images else "–", dataset_details(record)),
        ("Networks", str(spec.get("architecture", "–")), network_sizes(record)),
        ("Training length", format_kimg(record.images_seen), ", ".join(length)),
        (
            "Training time",
            format_duration(record.train_sec),
            f"{speed}, pauses for samples, evaluations and checkpoints included" if speed else "",
        ),
        (
            "Hardware",
            f"{pluralize(world.processes, 'process')} on {world.device or '–'}",
            record.provenance.hardware,
        ),
        best_score(record),
    ]


def best_score(record: RunRecord) -> tuple[str, str, str]:
    """Return (metric, best value, what it compares to) of the metric that selects checkpoints."""
    name, best = record.best_metric, record.best_evaluation
    label = f"Best {metric_label(name)}"
    if best is None:
        return label, "–", "no evaluation yet; distgan evaluate scores a generator at any time"
    details = [
        f"{EVALUATION_METRICS[name].better} is better" if EVALUATION_METRICS[name].better else "",
        f"real images score {format_number(best.reals[name])}" if name in best.reals else "",
        f"at {format_kimg(best.images_seen)}, "
        f"the best of {pluralize(len(record.comparable_evaluations), 'evaluation')}",
    ]
    return label, format_number(best.values[name]), "; ".join(filter(None, details))


def dataset_details(record: RunRecord) -> str:
    """Return shape, place and fingerprint of the images."""
    shape = record.image_shape
    details = [
        f"{shape[1]}x{shape[2]}, {pluralize(shape[0], 'channel')}" if shape else "",
        record.dataset_name,
        f"fingerprint {record.fingerprint[:12]}" if record.fingerprint else "",
    ]
    return "; ".join(filter(None, details))


def network_sizes(record: RunRecord) -> str:
    """Return the numbers of parameters; the networks are built without memory to count them."""
    if record.config is None:
        return ""
    discriminator = DiscriminatorSpec.from_settings(record.config.networks)
    try:
        spec = spec_from_dict(record.description.generator)
        part = spec.part if isinstance(spec, MixtureSpec) else spec
        with torch.device("meta"):
            networks = build_generator(part), build_discriminator(part, discriminator)
    except (KeyError, TypeError, ValueError, RuntimeError):
        return ""
    millions = [sum(each.numel() for each in network.parameters()) / 1e6 for network in networks]
    sizes = f"generator {millions[0]:.2f}M, discriminator {millions[1]:.2f}M parameters"
    if isinstance(spec, MixtureSpec):
        return f"{sizes}; one of each for {len(spec.classes)} classes"
    return sizes


def frames(record: RunRecord) -> list[tuple[str, str]]:
    """Return (caption, image) of each step of the timeline of samples."""
    grids = pick_evenly(record.sample_grids, MAX_FRAMES)
    found = [(frame_caption(record, kimg), image_file_uri(path)) for kimg, path in grids]
    return [(caption, uri) for caption, uri in found if uri is not None]


def frame_caption(record: RunRecord, kimg: float) -> str:
    """Return `12 kimg, epoch 3.2`, without the epoch if its length is unknown."""
    if not record.images_per_epoch:
        return format_kimg(kimg * 1000)
    return f"{format_kimg(kimg * 1000)}, epoch {kimg * 1000 / record.images_per_epoch:.3g}"


def metric_rows(record: RunRecord) -> list[tuple[str, float, float | None, float | None, str, str]]:
    """Return (metric, last value, best evaluation's, real images', better, meaning) of each."""
    if not record.evaluations:
        return []
    last, best = record.evaluations[-1], record.best_evaluation or record.evaluations[-1]
    rows = []
    for name, value in last.values.items():
        better, meaning = "", ""
        if name in EVALUATION_METRICS:
            better, meaning = EVALUATION_METRICS[name].better, EVALUATION_METRICS[name].meaning
        rows.append((name, value, best.values.get(name), last.reals.get(name), better, meaning))
    return rows


def nearest_images(record: RunRecord) -> dict[str, str | None]:
    """Return the grid of generated images with their nearest real ones, and its caption."""
    config = record.config
    if config is None:
        return {"caption": "Not available: this version does not know all settings.", "uri": None}
    try:
        found = find_nearest(
            record.path, config.data, seed=config.train.seed, fingerprint=record.fingerprint
        )
    except (UserError, ShardError) as error:
        return {"caption": f"Not available: {error}.", "uri": None}
    is_all = found.num_searched == found.num_reals
    searched = "all" if is_all else f"{found.num_searched:,} of the"
    caption = (
        f"Top row: generated images. Below each: the two nearest of {searched} "
        f"{found.num_reals:,} real images, compared by colour and coarse shape."
    )
    pixels = grid_pixels(found.grid, columns=len(found.fakes), scale=1).permute(1, 2, 0)
    return {"caption": caption, "uri": image_uri(Image.fromarray(pixels.numpy()))}


def epoch_marks(record: RunRecord) -> list[Mark]:
    """Return marks at the end of epoch 1 and of the last complete epoch."""
    if not record.images_per_epoch:
        return []
    last = int(record.images_seen / record.images_per_epoch + 1e-9)
    return [
        Mark(epoch * record.images_per_epoch / 1000, f"epoch {epoch}", f"end of epoch {epoch}")
        for epoch in sorted({1, last})
        if last
    ]


def event_mark(event: Event, number: int, num_events: int) -> Mark:
    """Return an event's mark, with its number if there are only a few events."""
    label = str(number) if num_events <= MAX_NUMBERED else ""
    return Mark(event.images_seen / 1000, label, event.what, is_bad(event))


def is_bad(event: Event) -> bool:
    """Return whether an event is a problem."""
    return event.kind in BAD_KINDS or event.verdict not in ("", *GOOD_VERDICTS)
