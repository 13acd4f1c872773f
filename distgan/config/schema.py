"""Every setting: its type, default, range and one sentence. `layers.py` reads them from presets and command lines.

Imports nothing heavy, so that `--help` and `--dry-run` answer at once.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, field_serializer, model_validator

from distgan.config.section import Section, setting
from distgan.config.thresholds import Thresholds
from distgan.errors import UserError
from shards.errors import without_secrets

ClassName = Annotated[str, Field(coerce_numbers_to_str=True)]  # of digits, too


class Data(Section):
    """Which images."""

    shards: str | None = setting(
        None,
        "Folder of packed shards, or its http, https or s3 URL; none means the digits shipped with scikit-learn.",
        identity=False,
    )
    cache_gb: float | None = setting(
        None,
        "Room for remote shards on each node; none takes what the disk gives.",
        identity=False,
        gt=0,
    )
    workers: int | None = setting(
        None,
        "Processes that decode png and jpeg shards for each training process; none means its cores but one, at most 16; 0: a thread.",
        identity=False,
        ge=0,
        le=256,
    )
    resident_share: float = setting(
        0.25,
        "All images stay in GPU memory if they take at most this share of what is free.",
        identity=False,
        ge=0,
        le=0.9,
    )
    order: Literal["permutation", "windows"] = setting(
        "permutation",
        "Of images: all permuted at once, or windows of shards one after another, for more than a node can keep.",
    )
    lanes: int | None = setting(
        None, "Windows read side by side, a divisor of the batch; none means up to 16.", ge=1
    )
    window_shards: int = setting(4, "Shards of a window.", ge=1, le=1024)
    flip: bool = setting(False, "Mirror each image left to right with probability one half.")
    classes: tuple[ClassName, ...] | None = setting(
        None, "Train on these classes only, by name; none means all."
    )

    @field_serializer("shards")
    def shown_shards(self, shards: str | None) -> str | None:
        """What is shown and stored of a URL: no password, no token."""
        return None if shards is None else without_secrets(shards)


class Networks(Section):
    """Generator and discriminator."""

    architecture: Literal["dcgan", "resnet"] = setting("dcgan", "Network family.")
    generator_width: int = setting(
        64,
        "Channels of the generator's last hidden layer; doubled toward the input.",
        ge=1,
        le=1024,
    )
    discriminator_width: int = setting(
        64, "Channels of the discriminator's first layer; doubled toward the output.", ge=1, le=1024
    )
    latent_dim: int = setting(
        100, "Length of the latent vector, drawn from N(0, 1).", ge=1, le=4096
    )
    discriminator_norm: Literal["batch", "spectral", "none"] = setting(
        "batch", "Of the discriminator: batch norm, spectral norm of every weight, or none."
    )
    discriminator_init: Literal["normal", "he"] = setting(
        "normal",
        "Initial weights of a dcgan's discriminator: N(0, 0.02), or He's for one without norm.",
    )
    discriminator_refinements: int = setting(
        0,
        "Resolutions at which a dcgan's discriminator has a 3x3 convolution besides, from the full one down.",
        ge=0,
        le=4,
    )
    minibatch_stddev: int = setting(
        0, "Images of a group whose spread the discriminator sees; 0 for none.", ge=0, le=64
    )
    packing: int = setting(
        1, "Images that the discriminator judges together, as one (PacGAN).", ge=1, le=16
    )
    per_class: bool = setting(
        False, "One GAN a class, sharing the length of the run, joined into one generator."
    )
    only_class: int | None = setting(
        None, "With per_class: the number of the one class to train.", identity=False, ge=0
    )

    @model_validator(mode="after")
    def only_one_of_several(self) -> "Networks":
        if self.only_class is not None and not self.per_class:
            raise ValueError(
                f"networks.only_class={self.only_class} needs networks.per_class=true; set that too"
            )
        return self

    @model_validator(mode="after")
    def parts_of_a_dcgan(self) -> "Networks":
        for name in ("discriminator_init", "discriminator_refinements"):
            value = getattr(self, name)
            if self.architecture != "dcgan" and value != type(self).model_fields[name].default:
                raise ValueError(
                    f"networks.{name}={value} is of dcgan; {self.architecture} has its own"
                )
        if self.discriminator_init == "he" and self.discriminator_norm != "none":
            raise ValueError(
                "networks.discriminator_init=he is for a discriminator without norm, for a norm sets the scale itself; "
                "add networks.discriminator_norm=none"
            )
        return self


class Diversity(Section):
    """Weights of the generator's diversity terms."""

    mode_seeking: float = setting(
        0.0, "Images that do not change with their latents cost this much.", ge=0.0
    )
    feature_distance: float = setting(
        0.0,
        "Fakes nearer to one another than reals are, in the discriminator's features, cost this much.",
        ge=0.0,
    )


class Loss(Section):
    """What the two networks minimise."""

    adversarial: Literal["bce", "lsgan", "hinge", "wasserstein", "relativistic"] = setting(
        "bce",
        "Adversarial loss on logits: bce is the non-saturating loss, relativistic compares pairs.",
    )
    label_smoothing: float = setting(
        0.0, "One-sided: the discriminator's target for reals is 1 minus this.", ge=0.0, lt=0.5
    )
    r1: float = setting(
        0.0, "Weight of half the discriminator's squared gradient at reals.", ge=0.0
    )
    r2: float = setting(
        0.0, "Weight of half the discriminator's squared gradient at fakes.", ge=0.0
    )
    gradient_penalty: float = setting(
        0.0,
        "Weight of the squared distance of the gradient's norm from 1 between reals and fakes.",
        ge=0.0,
    )
    penalty_interval: int = setting(
        1,
        "Discriminator steps from one penalty to the next, whose weight is multiplied by this number.",
        ge=1,
        le=1024,
    )
    penalty_final: float = setting(
        1.0, "Share of the penalties' weights left at the end of the run, along a cosine.", ge=0.0
    )
    unroll_steps: int = setting(
        0, "Steps of the discriminator that the generator anticipates (unrolled GAN).", ge=0, le=20
    )
    unroll_optimizer: Literal["adam", "sgd"] = setting(
        "adam", "Of the anticipated steps: adam goes on from the discriminator's own moments."
    )
    unroll_value: Literal["saddle", "non_saturating"] = setting(
        "saddle",
        "What an unrolled generator minimises; non_saturating has a slope where the discriminator is sure.",
    )
    augment: tuple[Literal["color", "translation", "cutout"], ...] = setting(
        (), "What is done to all images before the discriminator sees them (DiffAugment)."
    )
    augment_probability: float = setting(
        1.0,
        "Probability of each augmentation; the starting value where `augment_target` is set.",
        ge=0.0,
        le=1.0,
    )
    augment_target: float | None = setting(
        None,
        "Adapts the probability until the discriminator's mean sign on reals is this; usual: 0.6.",
        gt=-1,
        lt=1,
    )
    augment_ramp_kimg: float = setting(
        500.0, "Length in which an adapted probability can go from 0 to 1.", gt=0
    )
    diversity: Diversity = Diversity()

    @property
    def penalty_period(self) -> int:
        """Discriminator steps after which the work repeats."""
        return self.penalty_interval if self.penalised else 1

    @property
    def penalised(self) -> bool:
        """Whether there is any gradient penalty."""
        return self.r1 > 0 or self.r2 > 0 or self.gradient_penalty > 0

    @model_validator(mode="after")
    def smoothing_has_a_target(self) -> "Loss":
        if self.label_smoothing and self.adversarial in ("hinge", "wasserstein", "relativistic"):
            raise ValueError(
                f"loss.label_smoothing={self.label_smoothing}: {self.adversarial} has no target to smooth; "
                "use it with bce or lsgan"
            )
        return self


class Optim(Section):
    """How they minimise it."""

    name: Literal["adam", "adamw", "rmsprop", "sgd"] = setting(
        "adam", "Optimizer of both networks."
    )
    lr_g: float = setting(2e-4, "Learning rate of the generator.", gt=0.0)
    lr_d: float = setting(2e-4, "Learning rate of the discriminator.", gt=0.0)
    betas: tuple[float, float] = setting(
        (0.5, 0.999),
        "Decay rates of Adam's two moments; sgd takes the first as momentum, rmsprop both.",
    )
    weight_decay: float = setting(0.0, "Decoupled in adamw, else added to the gradient.", ge=0.0)
    schedule: Literal["constant", "linear", "cosine"] = setting(
        "constant", "Of both learning rates over the images of the run."
    )
    final_lr: float = setting(
        0.0, "Share of the learning rates that linear and cosine end with.", ge=0.0, le=1.0
    )
    lookahead_steps: int = setting(
        0,
        "Generator steps after which both networks go back part of their way (lookahead-minmax); 0 for never.",
        ge=0,
    )
    lookahead_alpha: float = setting(0.5, "Part of the way that lookahead keeps.", gt=0.0, le=1.0)

    @model_validator(mode="after")
    def betas_below_one(self) -> "Optim":
        if not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise ValueError(f"optim.betas={list(self.betas)}: both must be at least 0 and below 1")
        return self


class Train(Section):
    """Length, batch, precision and randomness."""

    epochs: float | None = setting(
        40.0,
        "Length of the run in passes over the images; replaces train.kimg.",
        identity=False,
        gt=0,
    )
    kimg: float | None = setting(
        None,
        "Length of the run in thousands of real images; replaces train.epochs.",
        identity=False,
        gt=0,
    )
    batch_size: int = setting(128, "Images a step over all processes together.", ge=1)
    accumulate: int = setting(
        1, "Micro-batches a process splits its share of the batch into.", ge=1
    )
    d_steps: int = setting(
        1,
        "Discriminator steps for each generator step; each takes a batch of its own.",
        ge=1,
        le=100,
    )
    precision: Literal["auto", "launcher"] = setting(
        "auto",
        "auto: the launcher's bf16 or fp16, else bf16 where the hardware is fast at it; launcher: to the letter.",
    )
    deterministic: bool = setting(
        False,
        "Only deterministic kernels, so that a resumed GPU run is bit-identical.",
        identity=False,
    )
    compile: Literal["auto", "always", "graphs", "never"] = setting(
        "auto",
        "torch.compile of both networks, graphs: with CUDA graphs; auto: on a GPU, what a trial at the start finds fastest.",
        identity=False,
    )
    cpu_threads: int | None = setting(
        None, "Threads of each CPU process; none shares the cores out evenly.", identity=False, ge=1
    )
    seed: int = setting(0, "Seed of initial weights, image order and every draw.", ge=0, lt=2**31)
    ema_halflife_kimg: float = setting(
        10.0,
        "Half-life of the generator's moving average; never more than a twentieth of the images seen.",
        ge=0,
    )

    @model_validator(mode="before")
    @classmethod
    def one_length(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("kimg") is None:
            return values
        if values.get("epochs") is not None:
            raise ValueError("train.epochs and train.kimg are both set; leave one")
        return values | {"epochs": None}


class Log(Section):
    """What a run tells while it runs."""

    every_kimg: float | None = setting(
        None, "Between two rows of metrics; none means 1/400 of the run.", identity=False, gt=0
    )
    samples_every_kimg: float | None = setting(
        None, "Between two sample grids; none means 1/20 of the run.", identity=False, gt=0
    )
    wandb: Literal["auto", "online", "offline", "disabled"] = setting(
        "auto",
        "Weights & Biases: auto is online where a key and a network are at hand, else offline.",
        identity=False,
    )
    report: bool = setting(
        True, "Write report.html at the end, which takes about a second.", identity=False
    )
    project: str = setting("distgan", "Weights & Biases project.", identity=False, min_length=1)
    group: str | None = setting(
        None, "W&B group; none means WANDB_RUN_GROUP, else the SLURM array.", identity=False
    )


class Checkpoint(Section):
    """What is kept to go on from."""

    every_kimg: float | None = setting(
        None, "Between two checkpoints; none means 1/20 of the run.", identity=False, gt=0
    )
    keep: int = setting(2, "Newest checkpoints that are kept.", identity=False, ge=1)


class Evaluation(Section):
    """How generated images are held against real ones."""

    every_kimg: float | None = setting(
        None, "Between two evaluations; none means 1/10 of the run.", identity=False, gt=0
    )
    num_samples: int = setting(
        2000, "Fakes of an evaluation; never more than half the images.", identity=False, ge=12
    )
    extractor: str = setting(
        "auto",
        "Features: auto (the dataset's probe, else random), random, probe, inception, or the file of another dataset's probe.",
        identity=False,
    )
    inception_weights: str | None = setting(
        None,
        "File of Inception weights; none lets torch-fidelity download its own.",
        identity=False,
    )
    metrics: tuple[str, ...] | None = setting(
        None, "Metrics to compute; none means all.", identity=False
    )
    best_metric: str = setting(
        "quality/frechet", "Metric by which the best checkpoint is chosen and kept.", identity=False
    )


class Collapse(Section):
    """What is done about a collapse, or a loss that is not finite."""

    action: Literal["warn", "stop", "rollback"] = setting(
        "warn",
        "warn: say so; stop: end the run; rollback: go back to the last healthy checkpoint, changed by the remedy.",
        identity=False,
    )
    max_rollbacks: int = setting(3, "Rollbacks after which the run gives up.", identity=False, ge=1)
    lr_factor: float = setting(
        0.5,
        "Both learning rates are multiplied by this at each rollback.",
        identity=False,
        gt=0,
        le=1,
    )
    remedy: tuple[str, ...] = setting(
        (),
        "Settings that hold after a rollback, as section.field=value: of loss, and of optim lr_g, lr_d, betas, schedule.",
        identity=False,
    )
    thresholds: Thresholds = Thresholds()

    @model_validator(mode="after")
    def remedy_words(self) -> "Collapse":
        for word in self.remedy:
            if not word.startswith(("loss.", "optim.lr_", "optim.betas=", "optim.schedule=")):
                raise ValueError(
                    f"collapse.remedy={word!r}: a rollback can change settings of loss, and of optim lr_g, lr_d, betas "
                    "and schedule"
                )
        return self


class Config(Section):
    """All settings of a run."""

    data: Data = Data()
    networks: Networks = Networks()
    loss: Loss = Loss()
    optim: Optim = Optim()
    train: Train = Train()
    evaluation: Evaluation = Evaluation()
    collapse: Collapse = Collapse()
    log: Log = Log()
    checkpoint: Checkpoint = Checkpoint()

    @model_validator(mode="after")
    def penalties_need_own_logits(self) -> "Config":
        if self.loss.penalised and self.networks.discriminator_norm == "batch":
            raise ValueError(
                "loss.r1, loss.r2 and loss.gradient_penalty are about each image's own gradient, and batch norm mixes "
                "images; add networks.discriminator_norm=none (or spectral)"
            )
        return self


def total_images(train: Train, num_samples: int) -> int:
    """Length of the run in real images; raises UserError where no length is set."""
    if train.kimg is not None:
        return round(train.kimg * 1000)
    if train.epochs is not None:
        return round(train.epochs * num_samples)
    raise UserError("the run has no length; set train.epochs or train.kimg")
