"""Every setting: its type, default, range and one sentence; read from a preset and `section.field=value` words.

    default < preset (TOML) < command line      the later layer wins; `train.epochs` and `train.kimg` replace each other

Imports nothing heavy, so that `--help` and `--dry-run` answer at once.
"""

import difflib
import hashlib
import json
import tomllib
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from distgan.errors import UserError

PRESETS = files("distgan") / "presets"


def setting(default: Any, sentence: str, *, identity: bool = True, **bounds: Any) -> Any:
    """A field with its sentence; `identity` is False for what does not change the weights."""
    return Field(default, description=sentence, json_schema_extra={"identity": identity}, **bounds)


class Section(BaseModel):
    """Settings that belong together; unknown names are errors, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


class Data(Section):
    """Which images."""

    shards: str | None = setting(
        None, "Folder of packed shards; none means the digits shipped with scikit-learn.", identity=False
    )
    flip: bool = setting(False, "Mirror each image left to right with probability one half.")
    classes: tuple[str, ...] | None = setting(None, "Train on these classes only (names or numbers); none means all.")


class Networks(Section):
    """Generator and discriminator."""

    architecture: Literal["dcgan"] = setting("dcgan", "Network family.")
    generator_width: int = setting(
        64, "Channels of the generator's last hidden layer; doubled toward the input.", ge=1, le=1024
    )
    discriminator_width: int = setting(
        64, "Channels of the discriminator's first layer; doubled toward the output.", ge=1, le=1024
    )
    latent_dim: int = setting(100, "Length of the latent vector, drawn from N(0, 1).", ge=1, le=4096)


class Loss(Section):
    """What the two networks minimise."""

    adversarial: Literal["bce"] = setting("bce", "Adversarial loss on logits: bce is the non-saturating loss.")
    label_smoothing: float = setting(
        0.0, "One-sided: the discriminator's target for reals is 1 minus this.", ge=0.0, lt=0.5
    )


class Optim(Section):
    """How they minimise it."""

    name: Literal["adam"] = setting("adam", "Optimizer of both networks.")
    lr_g: float = setting(2e-4, "Learning rate of the generator.", gt=0.0)
    lr_d: float = setting(2e-4, "Learning rate of the discriminator.", gt=0.0)
    betas: tuple[float, float] = setting((0.5, 0.999), "Adam's decay rates of the first and second moment.")

    @model_validator(mode="after")
    def betas_below_one(self) -> "Optim":
        if not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise ValueError(f"optim.betas={list(self.betas)}: both must be at least 0 and below 1")
        return self


class Train(Section):
    """Length, batch, precision and randomness."""

    epochs: float | None = setting(
        40.0, "Length of the run in passes over the images; replaces train.kimg.", identity=False, gt=0
    )
    kimg: float | None = setting(
        None, "Length of the run in thousands of real images; replaces train.epochs.", identity=False, gt=0
    )
    batch_size: int = setting(128, "Images a step over all processes together.", ge=1)
    accumulate: int = setting(1, "Micro-batches a process splits its share of the batch into.", ge=1)
    d_steps: int = setting(
        1, "Discriminator steps for each generator step; each takes a batch of its own.", ge=1, le=100
    )
    precision: Literal["auto", "launcher"] = setting(
        "auto",
        "auto: the launcher's bf16 or fp16, else bf16 where the hardware is fast at it; launcher: to the letter.",
    )
    deterministic: bool = setting(
        False, "Only deterministic kernels, so that a resumed GPU run is bit-identical.", identity=False
    )
    compile: bool = setting(False, "Compile both networks with torch.compile.", identity=False)
    cpu_threads: int | None = setting(
        None, "Threads of each CPU process; none shares the cores out evenly.", identity=False, ge=1
    )
    seed: int = setting(0, "Seed of initial weights, image order and every draw.", ge=0, lt=2**31)
    ema_halflife_kimg: float = setting(
        10.0, "Half-life of the generator's moving average; never more than a twentieth of the images seen.", ge=0
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
        "auto", "Weights & Biases: auto is online where a key and a network are at hand, else offline.", identity=False
    )
    project: str = setting("distgan", "Weights & Biases project.", identity=False, min_length=1)


class Checkpoint(Section):
    """What is kept to go on from."""

    every_kimg: float | None = setting(
        None, "Between two checkpoints; none means 1/20 of the run.", identity=False, gt=0
    )
    keep: int = setting(2, "Newest checkpoints that are kept.", identity=False, ge=1)


class Config(Section):
    """All settings of a run."""

    data: Data = Data()
    networks: Networks = Networks()
    loss: Loss = Loss()
    optim: Optim = Optim()
    train: Train = Train()
    log: Log = Log()
    checkpoint: Checkpoint = Checkpoint()


def flat_fields(section: type[Section] = Config, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (`section.field`, pydantic field) for every setting, in the order of declaration."""
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from flat_fields(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name, field


def flat_values(config: Config) -> dict[str, Any]:
    """The settings as {`section.field`: plain value}."""

    def walk(tree: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        for name, value in tree.items():
            if isinstance(value, dict):
                yield from walk(value, f"{prefix}{name}.")
            else:
                yield prefix + name, value

    return dict(walk(config.model_dump(mode="json"), ""))


def identity_values(config: Config) -> dict[str, Any]:
    """The settings that change the weights; two runs that share them and the dataset are one run."""
    values = flat_values(config)
    return {name: values[name] for name, field in flat_fields() if field.json_schema_extra["identity"]}


def identity_hash(config: Config, fingerprint: str) -> str:
    """Eight hex digits of the identity settings and the dataset's fingerprint."""
    text = json.dumps([identity_values(config), fingerprint], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def changed_from_defaults(config: Config) -> dict[str, Any]:
    """The settings that differ from the defaults."""
    defaults = flat_values(Config())
    return {name: value for name, value in flat_values(config).items() if value != defaults[name]}


def total_images(train: Train, num_samples: int) -> int:
    """Length of the run in real images; raises UserError where no length is set."""
    if train.kimg is not None:
        return round(train.kimg * 1000)
    if train.epochs is not None:
        return round(train.epochs * num_samples)
    raise UserError("the run has no length; set train.epochs or train.kimg")


def load_config(preset: str | None, overrides: Sequence[str] = ()) -> Config:
    """Settings from a preset's name or TOML file and `section.field=value` words; raises UserError."""
    tree: dict[str, Any] = {}
    if preset is not None:
        merge(tree, read_preset(preset))
    for word in overrides:
        merge(tree, parse_override(word))
    return validate(tree)


def preset_names() -> list[str]:
    """The presets that come with distgan."""
    return sorted(entry.name.removesuffix(".toml") for entry in PRESETS.iterdir() if entry.name.endswith(".toml"))


def read_preset(preset: str) -> dict[str, Any]:
    """The tree of a shipped preset or of a TOML file."""
    if preset in preset_names():
        text = (PRESETS / f"{preset}.toml").read_text()
    elif not preset.endswith(".toml"):
        raise UserError(f"no preset {preset!r}; choose from {', '.join(preset_names())}, or give a .toml file")
    else:
        try:
            text = Path(preset).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read the preset {preset}: {error}") from None
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"the preset {preset} is not valid TOML: {error}") from None


def parse_override(word: str) -> dict[str, Any]:
    """`section.field=value` as a tree; the value is TOML, or a bare word taken as a string."""
    name, equals, text = word.partition("=")
    if not equals or "." not in name:
        raise UserError(f"cannot read {word!r}; settings are written section.field=value, as in train.batch_size=64")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    tree: Any = value
    for part in reversed(name.split(".")):
        tree = {part: tree}
    return tree


def merge(tree: dict[str, Any], layer: dict[str, Any]) -> None:
    """Lay `layer` over `tree` in place."""
    train = layer.get("train")
    for name, other in (("epochs", "kimg"), ("kimg", "epochs")):
        if isinstance(train, dict) and name in train and isinstance(tree.get("train"), dict):
            tree["train"].pop(other, None)
    for name, value in layer.items():
        if isinstance(value, dict) and isinstance(tree.get(name), dict):
            merge(tree[name], value)
        else:
            tree[name] = value


def validate(tree: dict[str, Any]) -> Config:
    """The tree as a Config; raises UserError with one line a mistake."""
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise UserError("\n".join(explain(mistake) for mistake in error.errors(include_url=False))) from None


def explain(mistake: Any) -> str:
    """One pydantic mistake as a line for a person."""
    names = [name for name, _ in flat_fields()]
    place = ".".join(str(part) for part in mistake["loc"])
    if mistake["type"] == "extra_forbidden":
        known = names if "." in place else list(Config.model_fields)
        same_field = [name for name in names if name.rpartition(".")[2] == place.rpartition(".")[2]]
        guess = next(iter(same_field + difflib.get_close_matches(place, known, n=1, cutoff=0.5)), None)
        return f"unknown setting {place!r}" + (
            f"; did you mean {guess}?" if guess else f"; settings: {', '.join(names)}"
        )
    if mistake["type"] == "value_error":
        return str(mistake["ctx"]["error"])
    if place in Config.model_fields:
        return (
            f"{place!r} is a section; set one of its fields: {', '.join(n for n in names if n.startswith(place + '.'))}"
        )
    return f"{place}={mistake['input']!r}: {mistake['msg'][0].lower()}{mistake['msg'][1:]}"


def to_toml(config: Config) -> str:
    """All settings as TOML that `load_config` reads back; settings without a value are left out."""
    lines: list[str] = []
    section = None
    for name, value in flat_values(config).items():
        place, _, field = name.rpartition(".")
        if place != section:
            section = place
            lines += ["", f"[{section}]"]
        if value is not None:
            lines.append(f"{field} = {json.dumps(value)}")
    return "\n".join(lines).strip() + "\n"
