"""Networks that start from the weights of another run (`train.init_from`)."""

from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file

from distgan.errors import UserError
from distgan.gan import GAN
from distgan.networks.generator_file import EMA_PREFIX
from distgan.run.checkpointer import broadcast_tensors
from distgan.run.checkpoints import (
    Tensors,
    describe,
    list_checkpoints,
    load,
    unpack_optimizer,
    with_current_names,
)
from distgan.text import first_line

NETWORK_OF_OPTIMIZER = {"optimizer_g": "generator.", "optimizer_d": "discriminator."}


class Weights(NamedTuple):
    """What a file holds: named tensors, as in a checkpoint, and the optimizers' plain values."""

    file: Path
    tensors: Tensors
    players: dict[str, Any]


class Start(NamedTuple):
    """What became of the weights that a run was to start from."""

    notes: list[str]  # for the user
    origin: dict[str, str]  # for provenance.json, on rank zero: the file and its sha256


def start_from(gan: GAN, path: Path, *, with_optimizers: bool) -> Start:
    """Copy all weights that fit from a run, a checkpoint or a generator file. Collective.

    Rank zero reads them. The notes name the weights that do not fit and so remain as they were
    drawn. Raises UserError if nothing fits, or there is nothing to read.
    """
    found = gan.world.run_on_main(lambda: read_weights(path))
    players = gan.world.broadcast_object(found.players if found else {})
    tensors = broadcast_tensors(found.tensors if found else {}, gan.world, gan.accelerator.device)
    unfit: dict[str, list[str]] = {}
    for prefix, network in gan.networks().items():
        own = network.state_dict()
        fitting = {
            name: tensors[prefix + name]
            for name, tensor in own.items()
            if prefix + name in tensors and tensors[prefix + name].shape == tensor.shape
        }
        network.load_state_dict(own | fitting)
        unfit[prefix] = [name for name in own if name not in fitting]
    if len(unfit["generator."]) == len(gan.raw_generator.state_dict()):
        raise UserError(
            f"train.init_from={path}: no weight of its generator fits; "
            "train with the same networks.architecture, widths and image size"
        )
    frozen = {n for n, p in gan.raw_discriminator.named_parameters() if not p.requires_grad}
    if missing := sorted(frozen & set(unfit["discriminator."])):
        raise UserError(
            f"train.freeze_d keeps layers of the discriminator, and {path} has no fitting "
            f"{missing[0]}; leave it out, or start from a run with the same discriminator"
        )
    if gan.lookahead is not None:
        gan.lookahead.restart()
    if with_optimizers:
        load_optimizers(gan, tensors, players, unfit, path)
    gan.is_calibrated = False
    anew = [prefix + name for prefix, names in unfit.items() for name in names]
    anew = [name for name in anew if not name.startswith(EMA_PREFIX)]
    notes = [f"started from {path}", *([f"drawn anew: {', '.join(anew)}"] if anew else [])]
    return Start(notes, describe_origin(found.file) if found else {})


def describe_origin(file: Path) -> dict[str, str]:
    """Return what provenance.json says of the file that weights came from."""
    return {"file": str(file.absolute()), "sha256": str(describe(file)["sha256"])}


def read_weights(path: Path) -> Weights:
    """Read a checkpoint folder, the newest checkpoint of a run, or a file with a generator.

    Raises UserError.
    """
    if path.is_file():
        try:
            weights = load_file(path)
        except (OSError, SafetensorError, RuntimeError) as error:
            raise UserError(f"train.init_from={path}: {first_line(error)}") from None
        first = next(iter(weights), "")
        if first.startswith("parts."):
            raise UserError(
                f"train.init_from={path}: these are several GANs, one per class; give the folder "
                "of one of them, in classes/ of that run"
            )
        if first.startswith((*NETWORK_OF_OPTIMIZER, *NETWORK_OF_OPTIMIZER.values(), EMA_PREFIX)):
            raise UserError(f"train.init_from={path}: give the folder of this checkpoint")
        prefixes = ("generator.", EMA_PREFIX)
        named = {prefix + name: t for prefix in prefixes for name, t in weights.items()}
        return Weights(path, named, {})
    checkpoints = (
        [path] if (path / "manifest.json").exists() else list_checkpoints(path / "checkpoints")
    )
    if checkpoints:
        newest = checkpoints[-1]
        tensors, contents = load(newest)
        named = with_current_names(tensors)
        return Weights(newest / "tensors.safetensors", named, contents["players"])
    if (path / "generator.safetensors").exists():
        return read_weights(path / "generator.safetensors")
    raise UserError(
        f"train.init_from={path}: give a run folder, a checkpoint folder or a generator.safetensors"
    )


def load_optimizers(
    gan: GAN, tensors: Tensors, players: dict[str, Any], unfit: dict[str, list[str]], path: Path
) -> None:
    """Restore the state of the optimizers of networks whose weights all fit; raises UserError."""
    for name, optimizer in gan.optimizers().items():
        if name not in players:
            raise UserError(
                f"train.init_optimizers=true: {path} has no optimizers; give a checkpoint"
            )
        (now,), (then, *_) = optimizer.param_groups, players[name]["param_groups"]
        # Adam and AdamW differ in this value alone.
        name_of_decay = "decoupled_weight_decay"
        if now.keys() != then.keys() or now.get(name_of_decay) != then.get(name_of_decay):
            raise UserError(
                f"train.init_optimizers=true: {path} was trained with another optim.name; "
                "set the same, or leave the optimizers out"
            )
        if unfit[NETWORK_OF_OPTIMIZER[name]]:
            continue
        try:
            if len(now["params"]) != len(then["params"]):
                raise ValueError(f"{name} had other weights")
            unpack_optimizer(name, optimizer, tensors, players[name])
        except ValueError as error:
            raise UserError(
                f"train.init_optimizers=true: {path}: {error}; leave train.init_optimizers out"
            ) from None
