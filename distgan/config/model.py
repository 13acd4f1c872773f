"""Settings of the networks and their losses."""

from typing import Literal

from pydantic import model_validator

from distgan.config.section import Section, setting


class Networks(Section):
    """Architecture of the generator and the discriminator."""

    architecture: Literal["dcgan", "resnet"] = setting(
        "dcgan", "Architecture of both networks: a plain DCGAN, or residual blocks."
    )
    generator_width: int = setting(
        64,
        "Width of the generator. In a dcgan: channels before the output layer, "
        "doubled at each layer toward the input.",
        ge=1,
        le=1024,
    )
    discriminator_width: int = setting(
        64,
        "Width of the discriminator. In a dcgan: channels after the first layer, "
        "doubled at each layer toward the output.",
        ge=1,
        le=1024,
    )
    max_width: int = setting(
        1024,
        "Largest number of channels of a layer of a dcgan. With the default widths it limits "
        "images of 192 and 256 pixels.",
        optional=True,
        ge=1,
        le=4096,
    )
    latent_dim: int = setting(
        100, "Length of the latent vector, drawn from N(0, 1).", ge=1, le=4096
    )
    discriminator_norm: Literal["batch", "spectral", "none"] = setting(
        "batch",
        "Normalisation in the discriminator: batch norm, spectral norm of all weights, or none.",
    )
    discriminator_init: Literal["normal", "he"] = setting(
        "normal",
        "Initial weights of a dcgan discriminator: normal is N(0, 0.02); "
        "he is He initialisation, for a discriminator without normalisation.",
    )
    discriminator_refinements: int = setting(
        0,
        "Number of resolutions, from the full one down, "
        "at which a dcgan discriminator has an additional 3x3 convolution.",
        ge=0,
        le=4,
    )
    generator_refinements: int = setting(
        0,
        "Number of resolutions, from the full one down, "
        "at which a dcgan generator has an additional 3x3 convolution.",
        optional=True,
        ge=0,
        le=4,
    )
    self_modulation: bool = setting(
        False,
        "Let the latent scale and shift the maps after each norm of the generator, through 32 "
        "numbers made of it (self-modulation).",
        optional=True,
    )
    san: bool = setting(
        False,
        "Divide the discriminator's last layer by its norm, and train its direction by the "
        "difference of mean scores alone (SAN).",
        optional=True,
    )
    minibatch_stddev: int = setting(
        0,
        "Group size of minibatch standard deviation, "
        "which shows the discriminator how much a group of images varies; 0 turns it off.",
        ge=0,
        le=64,
    )
    packing: int = setting(
        1, "Number of images that the discriminator classifies together (PacGAN).", ge=1, le=16
    )
    per_class: bool = setting(
        False,
        "Train one GAN per class and combine them into one generator; "
        "the images of the run are divided among the classes.",
    )
    only_class: int | None = setting(
        None, "With per_class: train only the class with this number.", identity=False, ge=0
    )

    condition: Literal["none", "class", "cluster"] = setting(
        "none",
        "What both networks are told about an image: nothing; its class, for images with labels; "
        "or its cluster, found in features before the training.",
        optional=True,
    )
    num_clusters: int = setting(
        20, "With condition=cluster: number of clusters.", optional=True, ge=2, le=1000
    )
    conditional_start_kimg: float = setting(
        0.0,
        "With a condition: train without it for so many thousand images, then blend it in over "
        "as many, which helps if classes have few images.",
        optional=True,
        ge=0,
    )

    @model_validator(mode="after")
    def check_condition(self) -> "Networks":
        given = f"networks.condition={self.condition}"
        if self.condition == "none" and self.conditional_start_kimg:
            raise ValueError(
                f"networks.conditional_start_kimg={self.conditional_start_kimg:g} needs a "
                "condition; set networks.condition=class (or cluster) too"
            )
        default = type(self).model_fields["num_clusters"].default
        if self.condition != "cluster" and self.num_clusters != default:
            raise ValueError(
                f"networks.num_clusters={self.num_clusters} needs networks.condition=cluster; "
                "set that too"
            )
        if self.condition != "none" and self.per_class:
            raise ValueError(
                f"{given} trains one GAN for all classes, and networks.per_class=true one for "
                "each; leave one of them out"
            )
        if self.condition != "none" and self.packing > 1:
            raise ValueError(
                f"{given} gives each image its own label, and networks.packing={self.packing} "
                "judges several images as one; leave one of them out"
            )
        return self

    @model_validator(mode="after")
    def check_only_class(self) -> "Networks":
        if self.only_class is not None and not self.per_class:
            raise ValueError(
                f"networks.only_class={self.only_class} needs networks.per_class=true; set that too"
            )
        return self

    @model_validator(mode="after")
    def check_dcgan_settings(self) -> "Networks":
        dcgan_only = (
            "discriminator_init", "discriminator_refinements", "generator_refinements", "max_width",
        )  # fmt: skip
        for name in dcgan_only:
            value = getattr(self, name)
            if self.architecture != "dcgan" and value != type(self).model_fields[name].default:
                raise ValueError(
                    f"networks.{name}={value} works with networks.architecture=dcgan only, "
                    f"not with {self.architecture}"
                )
        if self.minibatch_stddev == 1:
            raise ValueError(
                "networks.minibatch_stddev=1: one image does not vary; use 4, or 0 to turn it off"
            )
        if self.discriminator_init == "he" and self.discriminator_norm != "none":
            raise ValueError(
                "networks.discriminator_init=he is for a discriminator without normalisation; "
                "add networks.discriminator_norm=none"
            )
        return self


class Diversity(Section):
    """Terms of the generator's loss that reward diversity."""

    mode_seeking: float = setting(
        0.0,
        "Weight of the mode-seeking loss, "
        "which penalises images that change little when their latents change.",
        ge=0.0,
    )
    feature_distance: float = setting(
        0.0,
        "Weight of a penalty on fakes that are closer to one another than real images are, "
        "in features of the discriminator.",
        ge=0.0,
    )


class Loss(Section):
    """Losses, gradient penalties and augmentation."""

    adversarial: Literal["bce", "lsgan", "hinge", "wasserstein", "relativistic"] = setting(
        "bce",
        "Adversarial loss; bce is the non-saturating GAN loss, "
        "relativistic compares each real image with a fake.",
    )
    label_smoothing: float = setting(
        0.0,
        "One-sided label smoothing: the discriminator's target for real images is 1 minus this.",
        ge=0.0,
        lt=0.5,
    )
    r1: float = setting(
        0.0,
        "Weight of the R1 penalty: "
        "half the squared gradient norm of the discriminator at real images.",
        ge=0.0,
    )
    r2: float = setting(
        0.0,
        "Weight of the R2 penalty: half the squared gradient norm of the discriminator at fakes.",
        ge=0.0,
    )
    gradient_penalty: float = setting(
        0.0,
        "Weight of the WGAN-GP penalty: the squared distance of the gradient norm from 1, "
        "at points between real images and fakes.",
        ge=0.0,
    )
    penalty_interval: int = setting(
        1,
        "Discriminator steps from one computation of the penalties to the next; "
        "their weights are multiplied by the same number.",
        ge=1,
        le=1024,
    )
    penalty_final: float = setting(
        1.0,
        "Factor on the penalties' weights at the end of the run, approached along a cosine from 1.",
        ge=0.0,
    )
    unroll_steps: int = setting(
        0,
        "Discriminator steps that the generator looks ahead (unrolled GAN); 0 turns it off. "
        "They leave out gradient penalties, momentum of sgd and weight decay.",
        ge=0,
        le=20,
    )
    unroll_optimizer: Literal["adam", "sgd"] = setting(
        "adam",
        "Optimizer of the unrolled steps; adam starts from the discriminator's current moments. "
        "If not set and optim.name=sgd: sgd.",
    )
    unroll_value: Literal["saddle", "non_saturating"] = setting(
        "saddle",
        "Loss of an unrolled generator: saddle is that of the paper; "
        "non_saturating keeps its gradient while the discriminator is certain.",
    )
    augment: tuple[Literal["color", "translation", "cutout"], ...] = setting(
        (), "Augmentations of all images that the discriminator sees, real and fake (DiffAugment)."
    )
    augment_probability: float = setting(
        1.0,
        "Probability of each augmentation; if augment_target is set, only the initial value.",
        ge=0.0,
        le=1.0,
    )
    augment_target: float | None = setting(
        None,
        "Adapt the augmentation probability until the mean sign of the discriminator's logits "
        "on real images is this value; 0.6 is usual (ADA).",
        gt=-1,
        lt=1,
    )
    augment_ramp_kimg: float = setting(
        500.0,
        "Thousands of images that an adapted probability needs at least to go from 0 to 1.",
        gt=0,
    )
    diversity: Diversity = Diversity()

    @property
    def penalty_period(self) -> int:
        """Return the number of discriminator steps after which the penalties' work repeats."""
        return self.penalty_interval if self.penalised else 1

    @property
    def penalised(self) -> bool:
        """Return whether any gradient penalty has a weight."""
        return self.r1 > 0 or self.r2 > 0 or self.gradient_penalty > 0

    @model_validator(mode="after")
    def check_label_smoothing(self) -> "Loss":
        if self.label_smoothing and self.adversarial in ("hinge", "wasserstein", "relativistic"):
            raise ValueError(
                f"loss.label_smoothing={self.label_smoothing}: the {self.adversarial} loss "
                "has no targets to smooth; use it with bce or lsgan"
            )
        return self

    @model_validator(mode="after")
    def check_augment_target(self) -> "Loss":
        if self.augment_target is not None and not self.augment:
            raise ValueError(
                f"loss.augment_target={self.augment_target:g} has no augmentation to adapt; "
                """set 'loss.augment=["color","translation","cutout"]' too"""
            )
        if self.augment_target is not None and self.adversarial == "wasserstein":
            raise ValueError(
                f"loss.augment_target={self.augment_target:g} needs logits whose sign means real "
                "or fake, and the scores of loss.adversarial=wasserstein have none; set a fixed "
                "loss.augment_probability"
            )
        return self
