"""All settings of a run, section by section: type, default, range and a sentence for each.

Imports nothing heavy, so that `--help` and a misspelt setting are answered at once.
"""

from typing import Any

from pydantic import model_validator

from distgan.config.model import Diversity, Loss, Networks
from distgan.config.monitoring import Checkpoint, Collapse, Evaluation, Log, Thresholds
from distgan.config.section import Section
from distgan.config.training import Data, Optim, Train
from distgan.errors import UserError

__all__ = [
    "Checkpoint", "Collapse", "Config", "Data", "Diversity", "Evaluation", "Log", "Loss",
    "Networks", "Optim", "Thresholds", "Train", "total_images",
]  # fmt: skip


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

    @model_validator(mode="before")
    @classmethod
    def choose_unroll_optimizer(cls, tree: Any) -> Any:
        """Unroll steps of SGD if the discriminator takes such: its rate is far too high for Adam.

        Rates of adam, adamw and rmsprop are lengths of steps, so Adam unrolls any of them.
        """
        sections = tree if isinstance(tree, dict) else {}
        loss, optim = sections.get("loss"), sections.get("optim")
        if not isinstance(loss, dict) or not isinstance(optim, dict):
            return tree
        if not loss.get("unroll_steps") or optim.get("name") != "sgd":
            return tree
        return sections | {"loss": {"unroll_optimizer": "sgd"} | loss}

    @model_validator(mode="after")
    def check_penalties(self) -> "Config":
        if self.loss.penalised and self.networks.discriminator_norm == "batch":
            raise ValueError(
                "loss.r1, loss.r2 and loss.gradient_penalty need each image's own gradient, "
                "but batch norm mixes the images of a batch; "
                "add networks.discriminator_norm=none (or spectral)"
            )
        return self

    @model_validator(mode="after")
    def check_san(self) -> "Config":
        if self.networks.san and self.loss.unroll_steps:
            raise ValueError(
                "networks.san has a loss of its own, which loss.unroll_steps does not unroll; add "
                "networks.san=false, or leave out loss.unroll_steps"
            )
        return self

    @model_validator(mode="after")
    def check_frozen(self) -> "Config":
        if self.train.freeze_d and self.loss.unroll_steps:
            raise ValueError(
                "train.freeze_d does not go together with loss.unroll_steps, "
                "which trains all layers ahead; leave one of them out"
            )
        return self


def total_images(train: Train, num_samples: int) -> int:
    """Return the length of the run in real images; raises UserError if it is not even one."""
    if train.kimg is not None:
        setting, images = f"train.kimg={train.kimg:g}", train.kimg * 1000
    elif train.epochs is not None:
        setting, images = f"train.epochs={train.epochs:g}", train.epochs * num_samples
    else:
        raise UserError("the run has no length; set train.epochs or train.kimg")
    if not 1 <= round(images) < 2**53:
        raise UserError(f"{setting} is a run of {images:.3g} images; set another length")
    return round(images)
