"""The page of a run: one HTML file that needs no network, told from the run folder alone.

run folder -> RunRecord -> charts (SVG), pictures (JPEG in base64), tables -> template, which escapes every text -> report.html
"""

from pathlib import Path
from typing import Any

import torch
from markupsafe import Markup
from PIL import Image

from distgan.config.schema import Data
from distgan.evaluation.evaluate import Result
from distgan.evaluation.metrics import METRICS
from distgan.images import grid_pixels
from distgan.losses.adversarial import equilibrium
from distgan.networks.base import DiscriminatorSpec
from distgan.networks.build import build_discriminator, build_generator
from distgan.networks.mixture import MixtureSpec, spec_from_dict
from distgan.reporting.curves import Chart, Curve, Mark, draw
from distgan.reporting.nearest import Nearest, find_nearest
from distgan.reporting.rendering import data_uri, duration, picture, thinned, write_page
from distgan.reporting.run_record import VERDICTS, RunRecord, figures, read_story

REPORT_FILE = "report.html"
MOST_FRAMES = 24  # of the timeline
MOST_NUMBERED = 12  # events that bear numbers in the charts
NO_TIME = "Not looked for in a run that had to stop; distgan report does."


def write_report(run: Path, *, out: Path | None = None, has_time: bool = True) -> Path:
    """Write the page of a run folder, to report.html in it where no other place is given; raises UserError and OSError.

    Without time the nearest reals are left out, for which thousands of images must be read.
    """
    story = read_story(run)
    nearest = nearest_reals(story) if has_time else {"words": NO_TIME, "uri": ""}
    return write_page(
        "report.html.j2", out or run / REPORT_FILE, title=story.name, nearest=nearest, **told(story)
    )


def told(story: RunRecord) -> dict[str, Any]:
    """Everything the template shows of one run but its nearest reals."""
    events = [event for event in story.events if event.get("kind") != "done"]
    marks = [
        Mark(
            event["images_seen"] / 1000,
            str(number) if len(events) <= MOST_NUMBERED else "",
            is_bad(event),
        )
        for number, event in enumerate(events, start=1)
    ]
    charts = [
        (chart, Markup(draw(chart, epochs=epoch_marks(story), events=marks)))
        for chart in (*training_charts(story), *quality_charts(story))
        if not chart.is_empty
    ]
    frames = [(kimg, picture(path)) for kimg, path in thinned(story.sample_grids, MOST_FRAMES)]
    return {
        "story": story,
        "verdict_words": VERDICTS.get(story.verdict, ""),
        "facts": facts(story),
        "is_small": story.generator["generator"].get("image_size") == 32,
        "frames": [
            (f"{figures(kimg)} kimg{epoch_phrase(story, kimg)}", uri) for kimg, uri in frames if uri
        ],
        "reals": picture(story.path / "samples" / "reals.png"),
        "charts": charts,
        "events": [(event["images_seen"] / 1000, event, is_bad(event)) for event in events],
        "quality": quality_rows(story),
        "protocol": protocol_line(story),
    }


def facts(story: RunRecord) -> list[tuple[str, str, str]]:
    """(what, the answer, what more there is to say): the headline."""
    spec, world = story.generator["generator"], story.provenance["world"]
    processes = world.get("processes", 1)
    shape = (
        f"{spec.get('image_size')}x{spec.get('image_size')}, {spec.get('channels')} channels; "
        if spec
        else ""
    )
    best, epochs = story.best_evaluation, story.last("progress/epoch")
    where = f"best of {len(story.evaluations)} evaluations"
    fingerprint = story.generator["dataset"] or story.generator["fingerprint"]
    return [
        ("data", f"{story.epoch_images:,} images" if story.epoch_images else "–",
         f"{shape}{data_name(story)}; {fingerprint[:12]}"),
        ("network", str(spec.get("architecture", "–")), network_size(story)),
        ("length", f"{figures(story.images_seen / 1000)} kimg", f"{epochs:,.3g} epochs" if epochs else ""),
        ("time", duration(story.train_sec), f"{figures(round(story.images_per_sec, 0))} images/s" if story.rows else ""),
        ("hardware", f"{processes} process{'es' if processes != 1 else ''} on {world.get('device', '–')}",
         story.provenance["hardware"]),
        ("quality", f"{short(story.best_metric)} {figures(best['values'][story.best_metric])}" if best else "not evaluated",
         f"{where}, at {figures(best['progress/images'] / 1000)} kimg" if best else "distgan evaluate scores a generator at any time"),
    ]  # fmt: skip


def training_charts(story: RunRecord) -> list[Chart]:
    """What the two networks do to each other."""
    level_d, level_g = equilibrium(story.config.loss) if story.config else (None, None)
    rows = story.rows

    def curve(label: str, color: int, name: str, level: float | None = None) -> Curve:
        return Curve.of_rows(label, color, rows, name, level=level)

    return [
        Chart("Losses", "dotted: where reals and fakes cannot be told apart",
              (curve("discriminator", 0, "loss/d", level_d), curve("generator", 1, "loss/g", level_g))),
        Chart("Discriminator's accuracy", "share; both at one: it has won",
              (curve("reals held real", 0, "accuracy/d_real"), curve("fakes seen through", 1, "accuracy/d_fake")),
              limits=(-0.02, 1.04)),
        Chart("Discriminator's logits", "above zero: held to be real",
              (curve("reals", 0, "logits/real_mean"), curve("fakes", 1, "logits/fake_mean"))),
        Chart("Gradient norms", "before each step",
              (curve("discriminator", 0, "grad_norm/d"), curve("generator", 1, "grad_norm/g")), is_log=True),
        Chart("Diversity in a batch", "ratio to reals, and share of near-duplicates",
              (curve("distance between fakes", 2, "diversity/batch_ratio", 1.0),
               curve("duplicates", 3, "diversity/batch_duplicates", 0.0))),
        Chart("Penalties and diversity terms", "weighted, as the losses have them",
              (curve("R1", 0, "penalty/r1"), curve("R2", 1, "penalty/r2"),
               curve("gradient penalty", 4, "penalty/gradient_penalty"),
               curve("mode seeking", 2, "diversity/mode_seeking"),
               curve("feature distance", 3, "diversity/feature_distance"))),
        Chart("Augmentation", "probability of each", (curve("probability", 0, "progress/augment"),), limits=(-0.02, 1.04)),
    ]  # fmt: skip


def quality_charts(story: RunRecord) -> list[Chart]:
    """What evaluations found, with the values of real images dotted."""
    rows = [
        {"progress/images": row["progress/images"]} | row["values"] for row in story.evaluations
    ]
    reals = story.evaluations[-1].get("reals", {}) if story.evaluations else {}

    def curves(*names: str) -> tuple[Curve, ...]:
        found = [name for name in names if any(name in row for row in rows)]
        return tuple(
            Curve.of_rows(short(name), 2 + place, rows, name, level=reals.get(name))
            for place, name in enumerate(found)
        )

    return [
        Chart("Distance to the reals", "lower is better; dotted: reals against reals",
              curves("quality/frechet", "quality/fid"), is_log=True),
        Chart("Fidelity and cover", "share; dotted: reals against reals",
              curves("quality/precision", "quality/recall", "quality/coverage"), limits=(-0.02, 1.04)),
        Chart("Diversity of the samples", "dotted: reals against reals",
              curves("diversity/spread", "diversity/duplicates", "diversity/copies")),
        Chart("Classes", "dotted: reals against reals",
              curves("diversity/effective_classes", "diversity/missing_classes")),
    ]  # fmt: skip


def quality_rows(story: RunRecord) -> list[tuple[str, str, str, str, str]]:
    """(metric, last value, best evaluation's value, value of reals, sentence) of the last evaluation."""
    if not story.evaluations:
        return []
    last, best = story.evaluations[-1], story.best_evaluation or story.evaluations[-1]
    return [
        (name, figures(value), figures(best["values"].get(name)), figures(last.get("reals", {}).get(name)),
         METRICS[name].sentence if name in METRICS else "")
        for name, value in last["values"].items()
    ]  # fmt: skip


def protocol_line(story: RunRecord) -> str:
    """How the last evaluation was made; empty where there is none, or one of another version."""
    try:
        return Result.from_dict(story.evaluations[-1]).protocol.line()
    except (IndexError, KeyError, TypeError):
        return ""


def nearest_reals(story: RunRecord) -> dict[str, str]:
    """The picture and what to say of it."""
    classes = story.settings.get("data.classes")
    data = Data(
        shards=story.settings.get("data.shards"),
        classes=None if classes is None else tuple(classes),
    )
    seed = story.settings.get("train.seed", 0)
    found = find_nearest(story.path, data, seed=seed, fingerprint=story.generator["dataset"])
    if not isinstance(found, Nearest):
        return {"words": found, "uri": ""}
    everyone = "all" if found.num_searched == found.num_reals else f"{found.num_searched:,} of the"
    words = f"Above: fakes. Below each: the two nearest of {everyone} {found.num_reals:,} reals, by colour and coarse shape."
    pixels = grid_pixels(found.grid, columns=len(found.fakes), scale=1).permute(1, 2, 0)
    return {"words": words, "uri": data_uri(Image.fromarray(pixels.numpy()))}


def epoch_marks(story: RunRecord) -> list[Mark]:
    """The end of epoch 1 and of the last whole epoch."""
    if not story.epoch_images:
        return []
    last = int(story.images_seen / story.epoch_images + 1e-9)
    marks = [
        Mark(epoch * story.epoch_images / 1000, f"epoch {epoch}")
        for epoch in sorted({1, last})
        if last
    ]
    too_close = len(marks) == 2 and marks[0].kimg > 0.75 * marks[1].kimg
    return marks[1:] if too_close else marks


def epoch_phrase(story: RunRecord, kimg: float) -> str:
    """`, epoch 3.2`, where the length of an epoch is known."""
    return f", epoch {kimg * 1000 / story.epoch_images:.3g}" if story.epoch_images else ""


def is_bad(event: dict[str, Any]) -> bool:
    """Whether an event is a trouble."""
    kind, verdict = event.get("kind"), event.get("verdict", "healthy")
    return kind in ("warning", "failed", "collapsed", "rollback") or verdict not in (
        "healthy",
        "learning",
    )


def network_size(story: RunRecord) -> str:
    """Parameters of both networks, counted on networks that take no memory."""
    if story.config is None:
        return ""
    judge = DiscriminatorSpec.from_settings(story.config.networks)
    try:
        spec = spec_from_dict(story.generator["generator"])
        part = spec.part if isinstance(spec, MixtureSpec) else spec
        with torch.device("meta"):
            networks = build_generator(part), build_discriminator(part, judge)
    except (KeyError, TypeError, ValueError):
        return ""
    sizes = [
        sum(parameter.numel() for parameter in network.parameters()) / 1e6 for network in networks
    ]
    each = f"; one of each for {len(spec.classes)} classes" if isinstance(spec, MixtureSpec) else ""
    return f"generator {sizes[0]:.2f}M, discriminator {sizes[1]:.2f}M parameters{each}"


def data_name(story: RunRecord) -> str:
    """Where the images lie."""
    return str(story.settings.get("data.shards") or "digits shipped with scikit-learn")


def short(metric: str) -> str:
    """A metric's name without its panel, in words."""
    return metric.rpartition("/")[2].replace("_", " ")
