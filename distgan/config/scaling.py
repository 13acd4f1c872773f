"""Settings that follow the batch size, so that many processes can share a larger batch.

The settings of a preset belong to its `optim.reference_batch`. For a batch that is k times as large
the rule for adam, adamw and rmsprop (Malladi et al. 2022, definition 5) gives

    learning rate * sqrt(k)      1 - beta2 times k      epsilon / sqrt(k)

and that for sgd multiplies the learning rates by k. The decoupled weight decay of adamw is
multiplied by sqrt(k), which keeps the decay per image. The first beta stays, because the presets
train with little or no momentum. The intervals of penalties and of lookahead are divided by k: they
stay the same in images, as far as they are in the range of the setting. So does everything else
that is counted in images.
"""

import math
from typing import Any

from distgan.config.schema import Config
from distgan.errors import UserError

LEAST_BETA2 = 0.5  # the rule approximates a slow average, which a smaller beta2 is not
LARGEST_BETA2 = 0.999999  # much smaller batches would round it to 1
LARGEST_INTERVAL = 1024  # of loss.penalty_interval
LARGEST_FACTOR = 16  # of the batch that is chosen for many processes, unless they need more
FEWEST_IMAGES = 4  # of a process in that batch, over which batch norm normalises


FOLLOWERS = (  # of the batch size
    "optim.lr_g",
    "optim.lr_d",
    "optim.betas",
    "optim.epsilon",
    "optim.weight_decay",
    "optim.lookahead_steps",
    "loss.penalty_interval",
)


def share_batch(config: Config, num_processes: int, *, group: int) -> Config:
    """Enlarge the reference batch if these processes cannot share it.

    `group` is the number of images that have to stay together on one process. Each process gets as
    many images as the reference batch has, up to 16 times the reference batch in all, but at least
    four, and whole groups. A batch size other than the reference is kept.
    """
    train, reference = config.train, config.optim.reference_batch
    parts = num_processes * train.accumulate * math.ceil(FEWEST_IMAGES / group) * group
    if reference is None or config.optim.scaling == "none":
        return config
    can_share = reference >= parts and reference % (num_processes * train.accumulate * group) == 0
    if train.batch_size != reference or can_share:
        return config
    wanted = reference * min(num_processes, LARGEST_FACTOR)
    return changed(config, {"train": {"batch_size": math.ceil(wanted / parts) * parts}})


def scale_to_batch(config: Config, *, parts: int = 1) -> Config:
    """Return the settings for `train.batch_size`, which do not refer to another batch any more.

    Raises UserError if the batch is larger than the rule allows; `parts` divide any other batch.
    """
    if config.optim.reference_batch is None:
        return config
    optim = {"reference_batch": None, "scaling": "adam"}
    factor = config.train.batch_size / config.optim.reference_batch
    if config.optim.scaling == "none" or factor == 1:
        return changed(config, {"optim": optim})
    lookahead = {}
    if config.optim.lookahead_steps:
        lookahead = {"lookahead_steps": max(1, round(config.optim.lookahead_steps / factor))}
    interval = min(max(1, round(config.loss.penalty_interval / factor)), LARGEST_INTERVAL)
    return changed(
        config,
        {
            "optim": optim | lookahead | scaled_optim(config, factor, parts),
            "loss": {"penalty_interval": interval},
        },
    )


def scaled_optim(config: Config, factor: float, parts: int) -> dict[str, Any]:
    """Return the optimizer's settings for a batch `factor` times as large as the reference."""
    optim, batch_size = config.optim, config.train.batch_size
    if optim.name == "sgd":
        return {"lr_g": optim.lr_g * factor, "lr_d": optim.lr_d * factor}
    beta2 = round(1 - (1 - optim.betas[1]) * factor, 6)
    if beta2 < LEAST_BETA2:
        largest = round((1 - LEAST_BETA2) / (1 - optim.betas[1]), 6)
        most = math.floor(largest * round(batch_size / factor)) // parts * parts
        smaller = (
            f"at most train.batch_size={most}, or fewer processes" if most else "fewer processes"
        )
        raise UserError(
            f"train.batch_size={batch_size} is {factor:g} times optim.reference_batch, and the "
            f"rule for the learning rates holds up to {largest:.4g} times; use {smaller}, or keep "
            f"the learning rates with train.batch_size={batch_size} optim.scaling=none"
        )
    root = math.sqrt(factor)
    return {
        "lr_g": optim.lr_g * root,
        "lr_d": optim.lr_d * root,
        "betas": (optim.betas[0], min(beta2, LARGEST_BETA2)),
        "epsilon": optim.epsilon / root,
        "weight_decay": optim.weight_decay * (root if optim.name == "adamw" else 1),
    }


def adaptations(before: Config, after: Config) -> str:
    """Return `setting old -> new; ...` for what was derived, except Adam's epsilon."""
    rows = []
    for setting in ("train.batch_size", *FOLLOWERS):
        section, _, name = setting.partition(".")
        old, new = (getattr(getattr(config, section), name) for config in (before, after))
        if old != new and name != "epsilon":
            rows.append(f"{setting} {shown(old)} -> {shown(new)}")
    return "; ".join(rows)


def shown(value: Any) -> str:
    """Return a number, or several, in few digits."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(shown, value))}]"
    return f"{value:.4g}"


def changed(config: Config, values: dict[str, dict[str, Any]]) -> Config:
    """Return the settings with new values in some sections."""
    tree = config.model_dump()
    for section, new in values.items():
        tree[section] |= new
    return Config.model_validate(tree)
