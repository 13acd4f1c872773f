"""Settings of evaluations, verdicts, logs and checkpoints, and of the reaction to a collapse."""

from typing import Literal

from pydantic import model_validator

from distgan.config.section import Section, setting


class Evaluation(Section):
    """Comparison of generated with real images."""

    every_kimg: float | None = setting(
        None,
        "Thousands of images between evaluations. If not set: 1/10 of the run, but at least 10.",
        identity=False,
        gt=0,
    )
    num_samples: int = setting(
        2000,
        "Generated images per evaluation, at most half as many as there are real ones.",
        identity=False,
        ge=12,
    )
    extractor: str = setting(
        "auto",
        "Feature extractor: auto (the dataset's probe if it has a good one, otherwise random), "
        "random, probe, inception, or the file of another dataset's probe.",
        identity=False,
    )
    inception_weights: str | None = setting(
        None,
        "File of Inception weights. If not set: torch-fidelity downloads them.",
        identity=False,
    )
    metrics: tuple[str, ...] | None = setting(
        None,
        "Metrics to record, besides best_metric. If not set: all. "
        "The verdict does not depend on this setting.",
        identity=False,
    )
    best_metric: str = setting(
        "quality/frechet",
        "Metric that decides which checkpoint is kept as the best.",
        identity=False,
    )


class Thresholds(Section):
    """Limits at which the verdict changes."""

    young_fraction: float = setting(
        0.2,
        "A run is young during this fraction of its images: "
        "the verdict is then learning, unless training diverges.",
        identity=False,
        ge=0,
        le=1,
    )
    young_epochs: float = setting(
        5, "A run is also young during this many epochs.", identity=False, ge=0
    )
    young_kimg: float = setting(
        20,
        "young_epochs ends after at most this many thousand images.",
        identity=False,
        ge=0,
    )
    healthy_precision: float = setting(
        0.6,
        "Healthy: precision is at least this fraction of the reals' precision.",
        identity=False,
    )
    healthy_coverage: float = setting(
        0.5,
        "Healthy: coverage is at least this fraction of the reals' coverage.",
        identity=False,
    )
    healthy_recall: float = setting(
        0.5,
        "Healthy: recall is at least this fraction of the reals' recall.",
        identity=False,
    )
    one_image_spread: float = setting(
        0.4,
        "Complete collapse: the features of fakes vary less than this fraction of the reals' "
        "variation; their pixels must confirm it.",
        identity=False,
    )
    one_image_pixel_spread: float = setting(
        0.2,
        "Complete collapse: the pixels of thumbnails vary less than this fraction of the reals' "
        "variation, and many have a near-duplicate.",
        identity=False,
    )
    duplicates: float = setting(
        0.5,
        "Partial collapse: more than this fraction of the fakes have a near-duplicate, "
        "both in features and in pixels.",
        identity=False,
    )
    plausible_precision: float = setting(
        0.5,
        "Fakes are checked for missing classes, low coverage and copies "
        "once their precision reaches this fraction of the reals' precision.",
        identity=False,
    )
    detail: float = setting(
        0.5,
        "Blurred, and so not plausible: neighbouring pixels differ less than this fraction "
        "of what they do in reals.",
        identity=False,
    )
    low_coverage: float = setting(
        0.25,
        "Partial collapse: coverage below this fraction of the reals' coverage, "
        "and recall too low for healthy.",
        identity=False,
    )
    missing_classes: float = setting(
        0.05,
        "Partial collapse: more than this fraction of the classes are missing.",
        identity=False,
    )
    missing_kinds: float = setting(
        1,
        "Partial collapse: more than this number of the kinds of real images are missing, "
        "which are found as about 20 clusters of features, and recall is high enough for healthy.",
        identity=False,
        ge=0,
    )
    missing_pixel_kinds: float = setting(
        2,
        "Partial collapse: more than this number of the kinds of real images are missing, "
        "which are found as about 20 clusters of the pixels of thumbnails.",
        identity=False,
        ge=0,
    )
    recognisable_precision: float = setting(
        0.3,
        "Kinds that are missing in pixels count "
        "once precision reaches this fraction of the reals' precision.",
        identity=False,
    )
    coverage_fall: float = setting(
        0.6,
        "Partial collapse: coverage below this fraction of the run's own best coverage; "
        "recall must have fallen, too.",
        identity=False,
    )
    settled_coverage: float = setting(
        0.1,
        "coverage_fall applies once the run's best coverage has reached this fraction "
        "of the reals' coverage.",
        identity=False,
    )
    few_classes: float = setting(
        0.01,
        "Complete collapse: the fakes use at most this fraction of the classes; "
        "matters with hundreds of classes.",
        identity=False,
    )
    copies: float = setting(
        0.1,
        "Memorising: more than this fraction of the fakes are copies of real images, "
        "both in features and in pixels.",
        identity=False,
    )
    accuracy_high: float = setting(
        0.99,
        "Discriminator winning: its accuracies on reals and on fakes are both above this.",
        identity=False,
    )
    fakes_accuracy_low: float = setting(
        0.1,
        "Generator winning: the discriminator's accuracy on fakes is below this.",
        identity=False,
    )
    accuracy_low: float = setting(
        0.4,
        "Generator winning: the discriminator's mean accuracy on reals and fakes is below this.",
        identity=False,
    )
    batch_ratio: float = setting(
        0.1,
        "Complete collapse between evaluations: the mean distance within a batch of fakes "
        "is below this fraction of that within a batch of reals.",
        identity=False,
    )
    patience_reports: int = setting(
        5,
        "Consecutive reports that must show a problem before it counts, "
        "or be free of it before it is cleared.",
        identity=False,
        ge=1,
    )
    grace_evaluations: int = setting(
        0,
        "A run is also young until it has had this many evaluations.",
        identity=False,
        ge=0,
    )
    stall_evaluations: int = setting(
        2,
        "Evaluations without a better distance after which a run counts as no longer improving.",
        identity=False,
        ge=1,
    )
    recovery_evaluations: int = setting(
        2,
        "Consecutive evaluations without a problem after which an earlier problem is cleared.",
        identity=False,
        ge=1,
    )


class Collapse(Section):
    """Reaction to a collapse, or to a loss that is not finite."""

    action: Literal["warn", "stop", "rollback"] = setting(
        "warn",
        "warn: continue; stop: end the run; "
        "rollback: return to the last healthy checkpoint and apply the remedy.",
        identity=False,
    )
    max_rollbacks: int = setting(3, "Rollbacks after which the run gives up.", identity=False, ge=1)
    lr_factor: float = setting(
        0.5,
        "Factor on both learning rates at each rollback.",
        identity=False,
        gt=0,
        le=1,
    )
    remedy: tuple[str, ...] = setting(
        (),
        "Settings that change at the first rollback, as section.field=value: "
        "any of loss, and of optim lr_g, lr_d, betas and schedule. "
        "Like those of a preset they follow the batch size.",
        identity=False,
    )
    thresholds: Thresholds = Thresholds()

    @model_validator(mode="after")
    def check_remedy(self) -> "Collapse":
        for override in self.remedy:
            if not override.startswith(("loss.", "optim.lr_", "optim.betas=", "optim.schedule=")):
                raise ValueError(
                    f"collapse.remedy={override!r}: a rollback can change settings of loss, "
                    "and of optim lr_g, lr_d, betas and schedule"
                )
        return self


class Log(Section):
    """Metrics, sample grids, the report, Weights & Biases and TensorBoard."""

    every_kimg: float | None = setting(
        None,
        "Thousands of images between rows of metrics. If not set: 1/400 of the run.",
        identity=False,
        gt=0,
    )
    samples_every_kimg: float | None = setting(
        None,
        "Thousands of images between sample grids. If not set: 1/20 of the run, but at least 1.",
        identity=False,
        gt=0,
    )
    wandb: Literal["auto", "online", "offline", "disabled"] = setting(
        "auto",
        "Mode of Weights & Biases; auto is online if there are a key and a network, else offline.",
        identity=False,
    )
    tensorboard: bool = setting(
        False,
        "Write TensorBoard event files to the run folder; "
        "needs pip install 'distgan[tensorboard]'.",
        identity=False,
    )
    report: bool = setting(
        True, "Write report.html at the end of the run, which takes about a second.", identity=False
    )
    project: str = setting("distgan", "Weights & Biases project.", identity=False, min_length=1)
    group: str | None = setting(
        None,
        "Weights & Biases group. If not set: WANDB_RUN_GROUP, or else the SLURM job array.",
        identity=False,
    )


class Checkpoint(Section):
    """Checkpoints, from which an interrupted run resumes."""

    every_kimg: float | None = setting(
        None,
        "Thousands of images between checkpoints. If not set: 1/20 of the run, but at least 1.",
        identity=False,
        gt=0,
    )
    keep: int = setting(
        2, "Latest checkpoints to keep, besides the best and the healthy one.", identity=False, ge=1
    )
