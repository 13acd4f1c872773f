"""The charts of one run: training metrics, and evaluations beside the values of real images."""

from distgan.losses.adversarial import equilibrium
from distgan.reporting.curves import Chart, Curve
from distgan.reporting.run_record import RunRecord

FRACTION = (-0.02, 1.04)  # limits of an axis from 0 to 1
LOSSES_IN_NATS = ("bce", "relativistic")
OF_REALS = "what real images score"

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
            "They say which network is ahead, not how good the images are.",
            network_curves(record, "loss", levels),
            level="the losses if the discriminator could not tell real from generated images; "
            "even good runs seldom stay there",
        ),
        Chart(
            "Discriminator accuracy",
            "fraction classified correctly",
            "Near 0.5: it is guessing. Between 0.5 and 1: it leads, as in most healthy runs. Both "
            "above 0.99 for long: it has won. Generated images near 0: the generator has won.",
            image_curves(record, "accuracy/d_real", "accuracy/d_fake"),
            limits=FRACTION,
        ),
        Chart(
            "Discriminator logits",
            "mean logit",
            "The discriminator's output. Above 0, images are classified as real, below 0 as "
            "generated. The further apart the curves, the further the discriminator is ahead.",
            image_curves(record, "logits/real_mean", "logits/fake_mean"),
        ),
        Chart(
            "Gradient norms",
            "L2 norm",
            "The length of the gradient of all parameters of a network. If it grows by powers of "
            "ten, the run may be about to diverge: lower the learning rates.",
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
            "Mean pixel distance between the generated images of a batch, over that of real "
            "images. Near 1: as varied as these. Near 0: all look alike, which is a collapse.",
            (distance,),
            level=OF_REALS,
        ),
        Chart(
            "Near-duplicates within a batch",
            "fraction of images",
            "Generated images of a batch whose pixels are almost those of another one. Near 1: all "
            "look alike, which is a collapse.",
            (duplicates,),
            limits=FRACTION,
            level=OF_REALS,
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
            "What these terms add to the losses. Penalties keep the discriminator from changing "
            "too steeply; the other terms keep the generated images varied.",
            tuple(terms),
        ),
        Chart(
            "Adaptive augmentation",
            "probability",
            "How often each augmentation changes the discriminator's input. It is raised while "
            "the discriminator knows the real images too well, as happens with few of them.",
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

    return [
        Chart(
            "Fréchet distance",
            "squared feature units",
            "How much the generated images as a whole differ from real ones, in look and in "
            "variety. Lower is better.",
            curves(("Fréchet distance", "quality/frechet"), ("FID", "quality/fid")),
            is_log=True,
            level=OF_REALS,
        ),
        Chart(
            "Precision, recall and coverage",
            "fraction",
            "Precision: generated images that are like a real one. Recall and coverage: real "
            "images that have a generated one like them. Higher is better.",
            curves(
                ("precision", "quality/precision"),
                ("recall", "quality/recall"),
                ("coverage", "quality/coverage"),
            ),
            limits=FRACTION,
            level=OF_REALS,
        ),
        Chart(
            "Feature spread",
            "ratio to real images",
            "How much the features of the generated images vary, over those of real images. Near "
            "1: as varied as these. Far below 1: too little variety.",
            curves(("spread", "diversity/spread")),
            level=OF_REALS,
        ),
        Chart(
            "Duplicates and copies",
            "fraction of generated images",
            "Duplicates are almost the same as another generated image; copies, as a training "
            "image, which the generator has then learned by heart. Lower is better.",
            curves(("duplicates", "diversity/duplicates"), ("copies", "diversity/copies")),
            level=OF_REALS,
        ),
        Chart(
            "Classes",
            "number of classes",
            "Effective: classes in equal use; higher is better. Missing: classes with hardly any "
            "generated image; lower is better.",
            curves(
                ("effective", "diversity/effective_classes"),
                ("missing", "diversity/missing_classes"),
            ),
            level=OF_REALS,
        ),
    ]
