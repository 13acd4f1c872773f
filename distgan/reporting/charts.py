"""The charts of one run: training metrics, and evaluations beside the values of real images."""

from dataclasses import replace

from distgan.losses.adversarial import equilibrium
from distgan.reporting.curves import Chart, Curve
from distgan.reporting.run_record import RunRecord

FRACTION = (-0.02, 1.04)  # limits of an axis from 0 to 1
LOSSES_IN_NATS = ("bce", "relativistic")
BATCH_CAPTION = "Of the generated images of one batch, compared by pixels. Dotted: real images."


def run_charts(record: RunRecord) -> list[Chart]:
    """Return every chart that has data."""
    charts = [*training_charts(record), *evaluation_charts(record)]
    return [chart for chart in charts if not chart.is_empty]


def training_charts(record: RunRecord) -> list[Chart]:
    """Return the charts of metrics.jsonl."""

    def curve(label: str, color: int, name: str, level: float | None = None) -> Curve:
        return Curve(label, color, *record.curve(name), level=level)

    loss = record.config.loss if record.config else None
    balance_d, balance_g = equilibrium(loss) if loss else (None, None)
    unit = " (nats)" if loss and loss.adversarial in LOSSES_IN_NATS else ""
    return [
        Chart(
            "Losses",
            f"loss{unit}",
            "Dotted: the losses when the discriminator cannot tell real from generated images.",
            (
                curve("discriminator", 0, "loss/d", balance_d),
                curve("generator", 1, "loss/g", balance_g),
            ),
        ),
        Chart(
            "Discriminator accuracy",
            "fraction classified correctly",
            "Near 0.5: it is guessing. Near 1: it separates the two perfectly.",
            (
                curve("real images", 0, "accuracy/d_real"),
                curve("generated images", 1, "accuracy/d_fake"),
            ),
            limits=FRACTION,
        ),
        Chart(
            "Discriminator logits",
            "mean logit",
            "Above 0: classified as real. Below 0: classified as generated.",
            (
                curve("real images", 0, "logits/real_mean"),
                curve("generated images", 1, "logits/fake_mean"),
            ),
        ),
        Chart(
            "Gradient norms",
            "L2 norm (log)",
            "Of all parameters of a network, before each optimizer step.",
            (curve("discriminator", 0, "grad_norm/d"), curve("generator", 1, "grad_norm/g")),
            is_log=True,
        ),
        Chart(
            "Distance within a batch",
            "ratio to real images",
            f"Mean distance between pairs. {BATCH_CAPTION}",
            (curve("generated images", 2, "diversity/batch_ratio", 1.0),),
        ),
        Chart(
            "Near-duplicates within a batch",
            "fraction of images",
            f"Near 1: collapse. {BATCH_CAPTION}",
            (curve("generated images", 3, "diversity/batch_duplicates", 0.01),),
            limits=FRACTION,
        ),
        Chart(
            "Penalties and diversity terms",
            f"weighted loss{unit}",
            "As they are added to the losses.",
            (
                curve("R1", 0, "penalty/r1"),
                curve("R2", 1, "penalty/r2"),
                curve("gradient penalty", 4, "penalty/gradient_penalty"),
                curve("mode seeking", 2, "diversity/mode_seeking"),
                curve("feature distance", 3, "diversity/feature_distance"),
            ),
        ),
        Chart(
            "Adaptive augmentation",
            "probability",
            "Of each augmentation of the discriminator's input.",
            (curve("augmentation", 0, "progress/augment"),),
            limits=FRACTION,
        ),
    ]


def evaluation_charts(record: RunRecord) -> list[Chart]:
    """Return the charts of evaluations.jsonl."""
    reals = record.evaluations[-1].reals if record.evaluations else {}

    def curves(*labelled: tuple[str, str]) -> tuple[Curve, ...]:
        return tuple(
            Curve(label, color, *record.curve(name), level=reals.get(name))
            for color, (label, name) in enumerate(labelled, start=2)
        )

    charts = [
        Chart(
            "Fréchet distance",
            "squared feature units (log)",
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
