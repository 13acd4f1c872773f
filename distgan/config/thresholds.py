"""Settings of the verdict: where each begins."""

from distgan.config.section import Section, setting


class Thresholds(Section):
    """Where the verdicts begin; a share is relative to the value of real images unless said otherwise."""

    one_image_spread: float = setting(
        0.2,
        "Complete collapse: features vary less than this part of the reals' and fakes are duplicates.",
        identity=False,
    )
    duplicates: float = setting(
        0.5,
        "More than this share of fakes with a near-duplicate (absolute) is a partial collapse.",
        identity=False,
    )
    plausible_precision: float = setting(
        0.5,
        "Fakes are judged for diversity once their precision reaches this part of the reals'.",
        identity=False,
    )
    low_coverage: float = setting(
        0.25,
        "Partial collapse: coverage below this part of the reals' while the fakes are plausible.",
        identity=False,
    )
    missing_classes: float = setting(
        0.05, "Partial collapse: more than this share of the classes missing.", identity=False
    )
    coverage_fall: float = setting(
        0.6,
        "Partial collapse: coverage below this part of the run's own best, once that was settled.",
        identity=False,
    )
    settled_coverage: float = setting(
        0.1,
        "A run's best coverage counts as settled from this part of the reals' on.",
        identity=False,
    )
    few_classes: float = setting(
        0.01,
        "Complete collapse among very many classes: no more than this share of them in use.",
        identity=False,
    )
    copies: float = setting(
        0.1,
        "Memorising: more than this share of fakes (absolute) are copies of reals.",
        identity=False,
    )
    accuracy_high: float = setting(
        0.99,
        "Discriminator winning: accuracy on reals and on fakes above this (absolute).",
        identity=False,
    )
    fakes_accuracy_low: float = setting(
        0.1, "Generator winning: accuracy on fakes below this (absolute).", identity=False
    )
    accuracy_low: float = setting(
        0.4,
        "Generator winning: mean accuracy on reals and fakes below this (absolute).",
        identity=False,
    )
    batch_ratio: float = setting(
        0.1,
        "One image, between evaluations: mean distance in a batch below this part of the reals'.",
        identity=False,
    )
    patience_reports: int = setting(
        5,
        "Reports in a row before a signal counts, and before it is withdrawn.",
        identity=False,
        ge=1,
    )
    grace_evaluations: int = setting(
        2,
        "First evaluations, in which nothing is called collapsed for what it has not learned.",
        identity=False,
        ge=0,
    )
    stall_evaluations: int = setting(
        2,
        "Evaluations without a better distance after which a run no longer counts as improving.",
        identity=False,
        ge=1,
    )
    recovery_evaluations: int = setting(
        2, "Evaluations without trouble before a trouble is withdrawn.", identity=False, ge=1
    )
