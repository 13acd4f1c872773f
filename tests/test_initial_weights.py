"""Runs that start from the weights of another run."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from distgan.config.load import load_config
from distgan.errors import UserError
from distgan.gan import GAN
from distgan.run.checkpoints import list_checkpoints
from distgan.run.initial_weights import start_from
from tests.worlds import checkpoint_digest, run_world, train_run

ONE_STEP = ["train.kimg=0.012"]


@pytest.fixture(scope="module")
def trained(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished run of the networks of `SMALL`."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    run_world(1, train_run, shards, folder, ["train.kimg=0.024"])
    return folder


def tensors_of(run: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a run's newest checkpoint."""
    return load_file(list_checkpoints(run / "checkpoints")[-1] / "tensors.safetensors")


@pytest.mark.parametrize("place", ["run", "checkpoint", "file"])
def test_weights_come_from_a_run_a_checkpoint_or_a_file(
    trained: Path, gan: GAN, place: str
) -> None:
    """All weights of a checkpoint are taken; a file has those of the averaged generator only."""
    checkpoint = list_checkpoints(trained / "checkpoints")[-1]
    paths = {"run": trained, "checkpoint": checkpoint, "file": trained / "generator.safetensors"}
    before = {name: t.clone() for name, t in gan.raw_discriminator.state_dict().items()}
    notes = start_from(gan, paths[place], with_optimizers=False)
    tensors = tensors_of(trained)
    prefix = "ema." if place == "file" else "generator."
    for name, tensor in gan.raw_generator.state_dict().items():
        if "running" not in name and "batches" not in name:
            assert torch.equal(tensor, tensors[prefix + name]), name
    for name, tensor in gan.raw_discriminator.state_dict().items():
        expected = before[name] if place == "file" else tensors[f"discriminator.{name}"]
        assert torch.equal(tensor, expected), name
    assert notes[0] == f"started from {paths[place]}"
    assert (len(notes) > 1) == (place == "file")


def test_first_layers_stay_frozen_on_any_number_of_ranks(
    shards: Path, trained: Path, tmp_path: Path
) -> None:
    """A step leaves two layers as they were and trains the others; replicas are equal."""
    overrides = [
        *ONE_STEP, f"train.init_from={str(trained)!r}", "train.init_optimizers=true",
        "train.freeze_d=2",
    ]  # fmt: skip
    first, second = run_world(2, train_run, shards, tmp_path / "run", overrides)
    for name, weight in first["weights"].items():
        np.testing.assert_array_equal(weight, second["weights"][name], err_msg=name)
    before, after = tensors_of(trained), tensors_of(tmp_path / "run")
    convolutions = [
        name for name in before if name.startswith("discriminator.") and before[name].dim() == 4
    ]
    same = [name for name in convolutions if torch.equal(before[name], after[name])]
    assert same == sorted(convolutions)[:2]
    events = [json.loads(line) for line in (tmp_path / "run/events.jsonl").read_text().splitlines()]
    assert any(str(trained) in event["what"] for event in events)


def test_a_resumed_run_does_not_start_over(shards: Path, trained: Path, tmp_path: Path) -> None:
    """Weights are read once: a resumed run equals an uninterrupted one, without the old run."""
    moved = tmp_path / "old"
    trained_copy = moved / "generator.safetensors"
    moved.mkdir()
    trained_copy.write_bytes((trained / "generator.safetensors").read_bytes())
    start = f"train.init_from={str(trained_copy)!r}"
    run_world(1, train_run, shards, tmp_path / "whole", ["train.kimg=0.036", start])
    run_world(1, train_run, shards, tmp_path / "cut", ["train.kimg=0.036", start], 12)
    trained_copy.unlink()
    run_world(1, train_run, shards, tmp_path / "cut", ["train.kimg=0.036", start])
    assert checkpoint_digest(tmp_path / "whole") == checkpoint_digest(tmp_path / "cut")


def test_weights_that_do_not_fit_are_named(
    shards: Path, trained: Path, tmp_path: Path, gan: GAN
) -> None:
    """Another latent length begins the projection anew; nothing that fits is one clear line."""
    overrides = [*ONE_STEP, "networks.latent_dim=5", f"train.init_from={str(trained)!r}"]
    run_world(1, train_run, shards, tmp_path / "run", overrides)
    events = (tmp_path / "run/events.jsonl").read_text()
    assert "drawn anew: generator.project.weight" in events
    with pytest.raises(UserError, match="give a run folder, a checkpoint folder or a generator"):
        start_from(gan, tmp_path / "nowhere", with_optimizers=False)
    (tmp_path / "broken").write_bytes(b"x" * 40)
    with pytest.raises(UserError, match=r"train\.init_from="):
        start_from(gan, tmp_path / "broken", with_optimizers=False)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["train.freeze_d=2"], "set train.init_from too"),
        (["train.init_optimizers=true"], "set train.init_from too"),
        (["train.init_from=x", "train.freeze_d=1", "loss.unroll_steps=1"], "leave one of them out"),
    ],
)
def test_settings_that_need_others_say_so(overrides: list[str], says: str) -> None:
    """Freezing needs trained weights, and does not go together with unrolling."""
    with pytest.raises(UserError, match=says):
        load_config(None, overrides)
