"""Runs that start from the weights of another run."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from distgan.config.flat import identity_hash
from distgan.config.load import load_config
from distgan.config.schema import Optim
from distgan.errors import UserError
from distgan.gan import GAN
from distgan.run.checkpoints import HEAD, OLD_HEAD, list_checkpoints, load, save
from distgan.run.initial_weights import start_from
from distgan.runtime.accelerator import reset_accelerator
from shards.pack import pack
from tests.small_gan import make_gan
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
    notes, origin = start_from(gan, paths[place], with_optimizers=False)
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
    file = Path(origin["file"])
    assert file.is_relative_to(paths[place])
    assert origin["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()


def test_the_head_of_an_older_version_is_taken_over(
    trained: Path, tmp_path: Path, gan: GAN
) -> None:
    """With its optimizer's state, though its weights were called `judge`."""
    tensors, contents = load(list_checkpoints(trained / "checkpoints")[-1])
    old = {name.replace(HEAD, OLD_HEAD): tensor for name, tensor in tensors.items()}
    path = save(tmp_path, images_seen=12, tensors=old, state={"players": contents["players"]})
    notes, _ = start_from(gan, path, with_optimizers=True)
    assert torch.equal(gan.raw_discriminator.head.weight, tensors[f"{HEAD}weight"])
    assert gan.optimizer_d.optimizer.state[gan.raw_discriminator.head.weight]
    assert notes == [f"started from {path}"]


def test_lookahead_begins_at_the_weights_that_were_loaded(trained: Path) -> None:
    """Otherwise its first update would mix them with those that were drawn."""
    gan = make_gan(optim=Optim(lookahead_steps=2))
    start_from(gan, trained, with_optimizers=False)
    assert gan.lookahead is not None
    loaded = [weight.detach().clone() for weight in (*gan.weights_g, *gan.weights_d)]
    gan.lookahead.step(0.5)
    reset_accelerator()
    assert all(map(torch.equal, (*gan.weights_g, *gan.weights_d), loaded))


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


def test_layers_that_were_drawn_are_not_frozen(shards: Path, trained: Path, tmp_path: Path) -> None:
    """A file with a generator has no trained layers of a discriminator to keep."""
    start = f"train.init_from={str(trained / 'generator.safetensors')!r}"
    with pytest.raises(AssertionError, match=r"no fitting layers\.0\.(bias|weight); leave it out"):
        run_world(1, train_run, shards, tmp_path / "run", [start, "train.freeze_d=2"])


def test_a_run_with_frozen_layers_resumes_bit_identically(
    shards: Path, trained: Path, tmp_path: Path
) -> None:
    """The optimizer keeps nothing for the frozen layers, which is no damage."""
    words = ["train.kimg=0.036", f"train.init_from={str(trained)!r}", "train.freeze_d=2"]
    run_world(1, train_run, shards, tmp_path / "whole", words)
    run_world(1, train_run, shards, tmp_path / "cut", words, 12)
    run_world(1, train_run, shards, tmp_path / "cut", words)
    assert checkpoint_digest(tmp_path / "whole") == checkpoint_digest(tmp_path / "cut")


def test_optimizers_that_lack_a_part_are_refused(trained: Path, tmp_path: Path, gan: GAN) -> None:
    """Those of a run with frozen layers, say: the error says what to leave out."""
    tensors, contents = load(list_checkpoints(trained / "checkpoints")[-1])
    del tensors["optimizer_d.0.exp_avg"]
    path = save(tmp_path, images_seen=12, tensors=tensors, state={"players": contents["players"]})
    with pytest.raises(UserError, match=r"optimizer_d are missing; leave train\.init_optimizers"):
        start_from(gan, path, with_optimizers=True)


def test_optimizers_of_a_network_with_more_weights_are_refused(
    trained: Path, tmp_path: Path, gan: GAN
) -> None:
    """The moments would go to other weights than their own."""
    tensors, contents = load(list_checkpoints(trained / "checkpoints")[-1])
    contents["players"]["optimizer_d"]["param_groups"][0]["params"].append(99)
    path = save(tmp_path, images_seen=12, tensors=tensors, state={"players": contents["players"]})
    with pytest.raises(UserError, match=r"had other weights; leave train\.init_optimizers out"):
        start_from(gan, path, with_optimizers=True)


def test_optimizers_of_another_kind_are_refused(shards: Path, tmp_path: Path, gan: GAN) -> None:
    """Adam and AdamW have the same values, and differ in the kind of weight decay."""
    run_world(1, train_run, shards, tmp_path / "run", [*ONE_STEP, "optim.name=adamw"])
    with pytest.raises(UserError, match=r"trained with another optim\.name"):
        start_from(gan, tmp_path / "run", with_optimizers=True)


def test_a_resumed_run_does_not_start_over(shards: Path, trained: Path, tmp_path: Path) -> None:
    """Weights are read once: a resumed run equals an uninterrupted one, without the old run.

    Its provenance still says where they came from.
    """
    moved = tmp_path / "old"
    trained_copy = moved / "generator.safetensors"
    moved.mkdir()
    trained_copy.write_bytes((trained / "generator.safetensors").read_bytes())
    start = f"train.init_from={str(trained_copy)!r}"
    run_world(1, train_run, shards, tmp_path / "whole", ["train.kimg=0.036", start])
    run_world(1, train_run, shards, tmp_path / "cut", ["train.kimg=0.036", start], 12)
    sha256 = hashlib.sha256(trained_copy.read_bytes()).hexdigest()
    trained_copy.unlink()
    run_world(1, train_run, shards, tmp_path / "cut", ["train.kimg=0.036", start])
    assert checkpoint_digest(tmp_path / "whole") == checkpoint_digest(tmp_path / "cut")
    for run in ("whole", "cut"):
        provenance = json.loads((tmp_path / run / "provenance.json").read_text())
        assert provenance["initial_weights"] == {"file": str(trained_copy), "sha256": sha256}


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
    tensors = list_checkpoints(trained / "checkpoints")[-1] / "tensors.safetensors"
    with pytest.raises(UserError, match="give the folder of this checkpoint"):
        start_from(gan, tensors, with_optimizers=False)
    save_file({"parts.0.project.weight": torch.zeros(1)}, tmp_path / "generator.safetensors")
    with pytest.raises(UserError, match="one per class; give the folder of one of them"):
        start_from(gan, tmp_path, with_optimizers=False)
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


def test_another_start_is_another_run() -> None:
    """The weights to start from, and what is frozen, are part of a run's identity."""
    settings = [[], ["train.init_from=a"], ["train.init_from=b"]]
    settings += [["train.init_from=a", "train.freeze_d=2"]]
    identities = {identity_hash(load_config(None, words), "data") for words in settings}
    assert len(identities) == len(settings)


def test_a_run_of_other_classes_takes_over_all_but_what_depends_on_them(
    shards: Path, tmp_path: Path
) -> None:
    """Embeddings of classes are drawn anew and named; everything else is the old run's."""
    for number in range(12):
        path = tmp_path / "pictures" / "abc"[number % 3] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (32, 32), 20 * number).save(path)
    others = pack(tmp_path / "pictures", tmp_path / "others", size=32, channels=1, workers=1)
    classes, runs = [*ONE_STEP, "networks.condition=class"], [tmp_path / "two", tmp_path / "three"]
    run_world(1, train_run, shards, runs[0], classes)
    start = [f"train.init_from={str(runs[0])!r}", "optim.lr_g=1e-30", "optim.lr_d=1e-30"]
    run_world(1, train_run, others.path, runs[1], [*classes, *start])
    old, new = map(tensors_of, runs)
    changed = {name for name in new if new[name].shape != old[name].shape}
    events = (runs[1] / "events.jsonl").read_text()
    assert changed
    for name, tensor in new.items():
        if not name.startswith(("generator.", "discriminator.")) or "num_batches" in name:
            continue
        assert (f"{name}," in events or f'{name}"' in events) == (name in changed), name
        if name not in changed and "running" not in name:
            assert torch.equal(tensor, old[name]), name
