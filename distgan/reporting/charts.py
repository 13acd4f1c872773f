"""The charts of one run: training metrics, and evaluations beside the values of real images."""

from dataclasses import replace

from distgan.losses.adversarial import equilibrium
from distgan.reporting.curves import Chart, Curve
from distgan.reporting.run_record import RunRecord

FRACTION = (-0.02, 1.04)  # limits of an axis from 0 to 1
LOSSES_IN_NATS = ("bce", "relativistic")
BATCH_CAPTION = "Of the generated images of one batch, compared by pixels. Dotted: real images."

Curves = tuple[Curve, ...]
Levels = tuple[float | None, float | None]  # of discriminator and generator


def run_charts(record: RunRecord) -> list[Chart]:
    """Return every chart that has data."""
    charts = [
        *balance_charts(record),
        *batch_charts(record),
        *regularization_charts(record),
        *evaluation_charts(record),
    ]
    return [chart for chart in charts if not chart.is_empty]


def training_curve(
    record: RunRecord, label: str, color: int, name: str, level: float | None = None
) -> Curve:
    """Return the curve of a metric in metrics.jsonl."""
    return Curve(label, color, *record.curve(name), level=level)


def network_curves(record: RunRecord, prefix: str, levels: Levels = (None, None)) -> Curves:
    """Return the curves of the discriminator and of the generator."""
    return (
        training_curve(record, "discriminator", 0, f"{prefix}/d", levels[0]),
        training_curve(record, "generator", 1, f"{prefix}/g", levels[1]),
    )


def image_curves(record: RunRecord, real: str, fake: str) -> Curves:
    """Return the curves of real and of generated images."""
    return (
        training_curve(record, "real images", 0, real),
        training_curve(record, "generated images", 1, fake),
    )


def loss_unit(record: RunRecord) -> str:
    """Return ` (nats)` if the losses have that unit."""
    is_in_nats = record.config and record.config.loss.adversarial in LOSSES_IN_NATS
    return " (nats)" if is_in_nats else ""


def balance_charts(record: RunRecord) -> list[Chart]:
    """Return the charts that show which network is ahead."""
    levels = equilibrium(record.config.loss) if record.config else (None, None)
    return [
        Chart(
            "Losses",
            f"loss{loss_unit(record)}",
            "Dotted: the losses when the discriminator cannot tell real from generated images.",
            network_curves(record, "loss", levels),
        ),
        Chart(
            "Discriminator accuracy",
            "fraction classified correctly",
            "Near 0.5: it is guessing. Near 1: it separates the two perfectly.",
            image_curves(record, "accuracy/d_real", "accuracy/d_fake"),
            limits=FRACTION,
        ),
        Chart(
            "Discriminator logits",
            "mean logit",
            "Above 0: classified as real. Below 0: classified as generated.",
            image_curves(record, "logits/real_mean", "logits/fake_mean"),
        ),
        Chart(
            "Gradient norms",
            "L2 norm",
            "Of all parameters of a network, before each optimizer step.",
            network_curves(record, "grad_norm"),
            is_log=True,
        ),
    ]


def batch_charts(record: RunRecord) -> list[Chart]:
    """Return the charts of the diversity within a batch, which show a collapse at once."""
    distance = training_curve(record, "generated images", 2, "diversity/batch_ratio", 1.0)
    duplicates = training_curve(record, "generated images", 3, "diversity/batch_duplicates", 0.01)
    return [
        Chart(
            "Distance within a batch",
            "ratio to real images",
            f"Mean distance between pairs. {BATCH_CAPTION}",
            (distance,),
        ),
        Chart(
            "Near-duplicates within a batch",
            "fraction of images",
            f"Near 1: collapse. {BATCH_CAPTION}",
            (duplicates,),
            limits=FRACTION,
        ),
    ]


def regularization_charts(record: RunRecord) -> list[Chart]:
    """Return the charts of penalties, diversity terms and augmentation, if a run has them."""
    terms = [
        training_curve(record, "R1", 0, "penalty/r1"),
        training_curve(record, "R2", 1, "penalty/r2"),
        training_curve(record, "gradient penalty", 4, "penalty/gradient_penalty"),
        training_curve(record, "mode seeking", 2, "diversity/mode_seeking"),
        training_curve(record, "feature distance", 3, "diversity/feature_distance"),
    ]
    return [
        Chart(
            "Penalties and diversity terms",
            f"weighted loss{loss_unit(record)}",
            "As they are added to the losses.",
            tuple(terms),
        ),
        Chart(
            "Adaptive augmentation",
            "probability",
            "Of each augmentation of the discriminator's input.",
            (training_curve(record, "augmentation", 0, "progress/augment"),),
            limits=FRACTION,
        ),
    ]


def evaluation_charts(record: RunRecord) -> list[Chart]:
    """Return the charts of evaluations.jsonl."""
    reals = record.evaluations[-1].reals if record.evaluations else {}

    def curves(*labelled: tuple[str, str]) -> Curves:
        return tuple(
            Curve(label, color, *record.curve(name), level=reals.get(name))
            for color, (label, name) in enumerate(labelled, start=2)
        )

    charts = [
        Chart(
            "Fréchet distance",
            "squared feature units",
            "Between the features of generated and real images. Lower is better.",
            curves(("Fréchet distance", "quality/frechet"), ("FID", "quality/fid")),
            is_log=True,
        ),
        Chart(
            "Precision, recall and coverage",
            "fraction",
            "Higher is better.",
            curves(
                ("precision", "quality/precision"),
                ("recall", "quality/recall"),
                ("coverage", "quality/coverage"),
            ),
            limits=FRACTION,
        ),
        Chart(
            "Feature spread",
            "ratio to real images",
            "Standard deviation of the features. Far below 1: too little variety.",
            curves(("spread", "diversity/spread")),
        ),
        Chart(
            "Duplicates and copies",
            "fraction of generated images",
            "Duplicates resemble a generated image, copies a training image. Lower is better.",
            curves(("duplicates", "diversity/duplicates"), ("copies", "diversity/copies")),
        ),
        Chart(
            "Classes",
            "number of classes",
            "Effective classes: higher is better. Missing classes: lower is better.",
            curves(
                ("effective", "diversity/effective_classes"),
                ("missing", "diversity/missing_classes"),
            ),
        ),
    ]
    return [replace(chart, caption=f"{chart.caption} Dotted: real images.") for chart in charts]
