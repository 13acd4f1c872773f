"""Names, meanings and units of all metrics."""

from typing import Literal, NamedTuple


class Metric(NamedTuple):
    """A metric's meaning in a sentence, its unit, and which way is better ("" if neither is)."""

    meaning: str
    unit: str
    better: Literal["higher", "lower", ""] = ""


TRAINING_METRICS = {
    "progress/kimg": Metric(
        "Real images consumed, in thousands: the x-axis of all charts.", "thousand images"
    ),
    "progress/images": Metric("Real images consumed.", "images"),
    "progress/epoch": Metric("Passes over the dataset.", "epochs"),
    "loss/d": Metric(
        "Discriminator loss: the sum of its parts on real and generated images.", "nats"
    ),
    "loss/d_real": Metric("Discriminator loss on real images.", "nats"),
    "loss/d_fake": Metric("Discriminator loss on generated images.", "nats"),
    "loss/g": Metric("Generator loss.", "nats"),
    "loss/d_relative": Metric(
        "Discriminator loss over its value when real and generated images look the same to it.",
        "ratio",
    ),
    "loss/g_relative": Metric(
        "Generator loss over its value when real and generated images look the same to the "
        "discriminator.",
        "ratio",
    ),
    "logits/real_mean": Metric("Mean logit of real images; above 0 is correct.", "logit"),
    "logits/fake_mean": Metric("Mean logit of generated images; below 0 is correct.", "logit"),
    "accuracy/d_real": Metric("Real images that the discriminator classifies as real.", "fraction"),
    "accuracy/d_fake": Metric(
        "Generated images that the discriminator classifies as generated.", "fraction"
    ),
    "grad_norm/d": Metric(
        "Gradient of all discriminator parameters before the optimizer step.", "L2 norm"
    ),
    "grad_norm/g": Metric(
        "Gradient of all generator parameters before the optimizer step.", "L2 norm"
    ),
    "penalty/r1": Metric(
        "Weighted penalty on the discriminator's gradient at real images, in steps that have it.",
        "nats",
    ),
    "penalty/r2": Metric(
        "Weighted penalty on the discriminator's gradient at generated images, in steps that have "
        "it.",
        "nats",
    ),
    "penalty/gradient_penalty": Metric(
        "Weighted penalty on gradient norms other than 1, in steps that have it.", "nats"
    ),
    "progress/augment": Metric(
        "Probability of each augmentation, as adapted so far.", "probability"
    ),
    "diversity/mode_seeking": Metric(
        "Weighted loss term against images that do not change with their latents.", "nats"
    ),
    "diversity/feature_distance": Metric(
        "Weighted loss term against generated images that are more alike than real ones.", "nats"
    ),
    "diversity/batch_ratio": Metric(
        "Mean pixel distance between the generated images of a batch, over that of real images.",
        "ratio",
    ),
    "diversity/batch_duplicates": Metric(
        "Generated images of a batch that are closer to another one than 99 % of real images are.",
        "fraction",
    ),
    "time/images_per_sec": Metric(
        "Speed: real images consumed per second by all processes since the previous report, pauses "
        "for samples, evaluations and checkpoints included.",
        "images/s",
    ),
    "time/step_images_per_sec": Metric(
        "Speed of the steps alone: as `time/images_per_sec`, without these pauses.", "images/s"
    ),
    "time/data_wait_frac": Metric("Part of the time that training waited for images.", "fraction"),
    "time/train_sec": Metric(
        "Time in the training loop, pauses included, over all starts of the run.", "s"
    ),
    "memory/peak_gb": Metric("Peak memory: of the GPU if there is one, else of the process.", "GB"),
}
"""The columns of metrics.jsonl. In W&B, the part of the name before the slash is a panel."""

EVALUATION_METRICS = {
    "quality/frechet": Metric(
        "Fréchet distance between normal distributions fitted to the features of generated and "
        "of real images.",
        "squared feature units",
        "lower",
    ),
    "quality/kernel": Metric(
        "Squared maximum mean discrepancy with a cubic kernel; unbiased, so it may be negative.",
        "squared kernel units",
        "lower",
    ),
    "quality/kernel_spread": Metric(
        "Standard deviation of the kernel distance over random subsets.", "squared kernel units"
    ),
    "quality/fid": Metric(
        "Fréchet distance in Inception features: the FID of published tables.",
        "squared feature units",
        "lower",
    ),
    "quality/kid": Metric(
        "Kernel distance in Inception features: the KID of published tables.",
        "squared kernel units",
        "lower",
    ),
    "quality/kid_spread": Metric(
        "Standard deviation of the KID over random subsets.", "squared kernel units"
    ),
    "quality/inception_score": Metric(
        "Inception score: sharpness and variety of the classes that Inception sees.",
        "classes",
        "higher",
    ),
    "quality/precision": Metric(
        "Generated images that are close to a real one: are they plausible?",
        "fraction of generated images",
        "higher",
    ),
    "quality/recall": Metric(
        "Real images that are close to a generated one: is there anything like them?",
        "fraction of real images",
        "higher",
    ),
    "quality/density": Metric(
        "How densely real images surround the generated ones; about 1 for real images.",
        "ratio",
        "higher",
    ),
    "quality/coverage": Metric(
        "Real images that have a generated one among their nearest neighbours.",
        "fraction of real images",
        "higher",
    ),
    "quality/detail": Metric(
        "Mean difference between neighbouring pixels, over that of real images; blur lowers it.",
        "ratio",
    ),
    "quality/class_accuracy": Metric(
        "Generated images of a conditional generator that the probe recognises as the class asked "
        "for.",
        "fraction of generated images",
        "higher",
    ),
    "quality/class_frechet": Metric(
        "Fréchet distance of each class's generated images from its real ones, averaged over the "
        "classes of a conditional generator.",
        "squared feature units",
        "lower",
    ),
    "quality/worst_class_coverage": Metric(
        "Coverage of the class of a conditional generator that has the lowest.",
        "fraction of real images",
        "higher",
    ),
    "diversity/spread": Metric(
        "Standard deviation of the features of generated images, over that of real images: 1 at "
        "best, and noise may be above.",
        "ratio",
    ),
    "diversity/vendi": Metric(
        "Vendi score: the effective number of distinct images.", "images", "higher"
    ),
    "diversity/duplicates": Metric(
        "Generated images that are closer to another one than 99 % of real images are.",
        "fraction of generated images",
        "lower",
    ),
    "diversity/copies": Metric(
        "Generated images that are closer to a training image than 99 % of other real images are.",
        "fraction of generated images",
        "lower",
    ),
    "diversity/confirmed_copies": Metric(
        "Copies that are closest to the same training image in features and in pixels.",
        "fraction of generated images",
        "lower",
    ),
    "diversity/pixel_spread": Metric(
        "Standard deviation of the pixels of 8x8 thumbnails, over that of real images: 1 at best.",
        "ratio",
    ),
    "diversity/pixel_duplicates": Metric(
        "Generated images whose thumbnails are closer to another's than 99 % of real ones are.",
        "fraction of generated images",
        "lower",
    ),
    "diversity/missing_kinds": Metric(
        "Kinds of real images, of about 20 found as clusters of features, with less than a tenth "
        "of their fraction among generated images.",
        "kinds",
        "lower",
    ),
    "diversity/missing_pixel_kinds": Metric(
        "The same for about 20 clusters of the pixels of thumbnails, with less than a fifth.",
        "kinds",
        "lower",
    ),
    "diversity/modes": Metric("Classes with at least one generated image.", "classes", "higher"),
    "diversity/effective_classes": Metric(
        "Number of classes in equal use: the exponential of their entropy.", "classes", "higher"
    ),
    "diversity/missing_classes": Metric(
        "Classes with less than a tenth of their fraction among real images, of those from which "
        "seven images or more could be expected.",
        "classes",
        "lower",
    ),
    "diversity/reverse_kl": Metric(
        "KL divergence of the classes of generated images from those of real ones.",
        "nats",
        "lower",
    ),
    "diversity/reverse_kl_floor": Metric(
        "Reverse KL divergence to expect of a perfect generator with as many images.", "nats"
    ),
}
"""The values in evaluations.jsonl."""

RANKING_METRICS = tuple(name for name, metric in EVALUATION_METRICS.items() if metric.better)
"""Those by which runs and checkpoints can be ranked: higher or lower values are better."""

PUBLISHED_NAMES = {
    "quality/frechet": "quality/fid",
    "quality/kernel": "quality/kid",
    "quality/kernel_spread": "quality/kid_spread",
}
"""Names of the same metrics in Inception features."""
