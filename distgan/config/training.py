"""Settings of the training images, the optimizers and the length of the run."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_serializer, field_validator, model_validator

from distgan.config.section import Section, setting
from shards.errors import without_secrets

ClassName = Annotated[str, Field(coerce_numbers_to_str=True)]  # classes may be named 0, 1, 2


class Data(Section):
    """The training images."""

    shards: str | None = setting(
        None,
        "Folder of packed shards, or its http, https or s3 URL. "
        "If not set: the handwritten digits of scikit-learn.",
        identity=False,
    )

    @field_validator("shards")
    @classmethod
    def check_encoding(cls, shards: str | None) -> str | None:
        try:
            (shards or "").encode()
        except UnicodeEncodeError:  # config.toml could not be read again
            raise ValueError(
                f"data.shards={shards!r}: this name is not UTF-8; rename the folder"
            ) from None
        return shards

    cache_gb: float | None = setting(
        None,
        "Largest size of the cache of remote shards on each node, in GB. "
        "If not set: as much as the disk has room for.",
        identity=False,
        gt=0,
    )
    workers: int | None = setting(
        None,
        "Processes per training process that decode png and jpeg shards; 0 decodes in a thread. "
        "If not set: one less than the cores of the training process, at most 16.",
        identity=False,
        ge=0,
        le=256,
    )
    resident_share: float = setting(
        0.25,
        "Keep all images in GPU memory if they need at most this fraction of the free memory.",
        identity=False,
        ge=0,
        le=0.9,
    )
    order: Literal["permutation", "windows"] = setting(
        "permutation",
        "permutation shuffles all images at once; windows shuffles within a few shards at a time, "
        "for datasets that do not fit on a node.",
    )
    lanes: int | None = setting(
        None,
        "Windows that are read in parallel; must divide the batch size. "
        "If not set: the greatest common divisor of 16 and the batch size.",
        ge=1,
    )
    window_shards: int = setting(4, "Shards per window.", ge=1, le=1024)
    flip: bool = setting(False, "Mirror each image horizontally with probability 1/2.")
    classes: tuple[ClassName, ...] | None = setting(
        None, "Names of the classes to train on. If not set: all classes."
    )

    @field_serializer("shards", when_used="json")
    def hide_secrets(self, shards: str | None) -> str | None:
        """Return the folder or URL without password and token, to be shown and stored."""
        return None if shards is None else without_secrets(shards)


class Optim(Section):
    """Optimizers and learning rates."""

    name: Literal["adam", "adamw", "rmsprop", "sgd"] = setting(
        "adam", "Optimizer of both networks."
    )
    lr_g: float = setting(2e-4, "Learning rate of the generator.", gt=0.0)
    lr_d: float = setting(2e-4, "Learning rate of the discriminator.", gt=0.0)
    betas: tuple[float, float] = setting(
        (0.5, 0.999),
        "Decay rates of Adam's first and second moment. "
        "sgd and rmsprop use the first as momentum, rmsprop the second for its squared gradients.",
    )
    epsilon: float = setting(
        1e-8,
        "Constant that adam, adamw and rmsprop add to the root of the second moment.",
        optional=True,
        ge=0.0,
    )
    weight_decay: float = setting(
        0.0,
        "Weight decay: decoupled with adamw, added to the gradient with the other optimizers.",
        ge=0.0,
    )
    schedule: Literal["constant", "linear", "cosine"] = setting(
        "constant", "Learning-rate schedule of both networks."
    )
    final_lr: float = setting(
        0.0,
        "Fraction of the learning rates that is left at the end of a linear or cosine schedule.",
        ge=0.0,
        le=1.0,
    )
    reference_batch: int | None = setting(
        None,
        "Batch size that the learning rates, the betas and loss.penalty_interval are meant for. "
        "If train.batch_size is another, they follow it.",
        optional=True,
        ge=1,
    )
    scaling: Literal["adam", "none"] = setting(
        "adam",
        "adam: settings follow the batch size by the rule of their optimizer, the square root for "
        "adam, adamw and rmsprop, and proportional for sgd. none: they do not follow it.",
        optional=True,
    )
    lookahead_steps: int = setting(
        0,
        "Generator steps between two lookahead updates, which move both networks part of the way "
        "back to where the last update left them (lookahead-minmax); 0 turns it off.",
        ge=0,
    )
    lookahead_alpha: float = setting(
        0.5,
        "Fraction of the way since the last lookahead update that the networks keep.",
        gt=0.0,
        le=1.0,
    )

    @model_validator(mode="after")
    def check_betas(self) -> "Optim":
        if not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise ValueError(f"optim.betas={list(self.betas)}: both must be at least 0 and below 1")
        return self


class Train(Section):
    """Length, batch size, precision and randomness."""

    epochs: float | None = setting(
        40.0,
        "Length of the run in epochs; setting it replaces train.kimg.",
        identity=False,
        gt=0,
    )
    kimg: float | None = setting(
        None,
        "Length of the run in thousands of real images; setting it replaces train.epochs.",
        identity=False,
        gt=0,
    )
    batch_size: int = setting(128, "Real images per step, over all processes together.", ge=1)
    accumulate: int = setting(
        1, "Micro-batches into which each process splits its part of the batch.", ge=1
    )
    d_steps: int = setting(
        1, "Discriminator steps per generator step, each with a batch of its own.", ge=1, le=100
    )
    precision: Literal["auto", "launcher"] = setting(
        "auto",
        "auto: bf16 or fp16 if the launcher asks for it, otherwise bf16 if the hardware computes "
        "it fast, or else fp16 if a GPU does; launcher: exactly what the launcher asks for.",
    )
    deterministic: bool = setting(
        False,
        "Use deterministic kernels only, so that a resumed GPU run is bit-identical.",
        identity=False,
    )
    compile: Literal["auto", "always", "graphs", "never"] = setting(
        "auto",
        "torch.compile of both networks; graphs adds CUDA graphs; auto uses what is fastest "
        "in a trial at the start on a GPU, and does not compile on a CPU.",
        identity=False,
    )
    cpu_threads: int | None = setting(
        None,
        "Threads of each CPU process. If not set: the cores are divided evenly.",
        identity=False,
        ge=1,
        le=1024,
    )
    seed: int = setting(
        0, "Seed of the initial weights, the image order and all random draws.", ge=0, lt=2**31
    )
    init_from: str | None = setting(
        None,
        "Run folder, checkpoint or generator.safetensors whose weights a new run starts from. "
        "Weights that do not fit are drawn anew.",
        optional=True,
    )
    init_optimizers: bool = setting(
        False, "With init_from: take over the state of the optimizers too.", optional=True
    )
    freeze_d: int = setting(
        0,
        "With init_from: number of layers of the discriminator, from the images on, "
        "that are not trained (FreezeD).",
        optional=True,
        ge=0,
        le=16,
    )
    ema_halflife_kimg: float = setting(
        10.0,
        "Half-life of the moving average of the generator's weights, in thousands of images; "
        "at most 1/20 of the images seen so far.",
        ge=0,
    )

    @model_validator(mode="after")
    def check_start(self) -> "Train":
        if self.init_from is None and (self.init_optimizers or self.freeze_d):
            name = "init_optimizers" if self.init_optimizers else "freeze_d"
            raise ValueError(f"train.{name} needs trained weights; set train.init_from too")
        return self

    @model_validator(mode="before")
    @classmethod
    def check_length(cls, values: Any) -> Any:
        """Drop the default of `epochs` if `kimg` is set."""
        if not isinstance(values, dict) or values.get("kimg") is None:
            return values
        if values.get("epochs") is not None:
            raise ValueError("train.epochs and train.kimg are both set; keep one of them")
        return values | {"epochs": None}
