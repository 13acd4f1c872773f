"""Starting and resuming: kills at awkward moments, machines that differ, damaged checkpoints."""

import errno
import fcntl
import json
import math
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import distgan.evaluation.evaluator
from distgan.config.load import load_config
from distgan.config.schema import Config, Evaluation
from distgan.data import open_dataset
from distgan.errors import UserError
from distgan.evaluation.evaluator import real_images
from distgan.evaluation.probe import Probe, ProbeCard, ProbeNet, probe_path
from distgan.networks.generator_file import find_generator
from distgan.run import checkpoints
from distgan.run.checkpointer import Checkpointer
from distgan.run.folder import RunFolder
from distgan.runtime.distributed import World
from shards.pack import pack
from tests.worlds import checkpoint_digest, run_world, train_run

ALONE = World(0, 1)


def pack_noise(folder: Path, *, num: int, seed: int, size: int = 32) -> Path:
    """Pack a few grey images of noise."""
    (folder / "images").mkdir(parents=True)
    for number in range(num):
        pixels = np.random.default_rng([seed, number]).integers(0, 256, (32, 32), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
    pack(str(folder / "images"), folder / "shards", size=size, channels=1, workers=1)
    return folder / "shards"


@pytest.mark.parametrize("world", [1, 2])
def test_run_killed_before_it_recorded_its_outcome_finishes_without_training(
    shards: Path, tmp_path: Path, world: int
) -> None:
    """The same command writes the generator and the outcome, and trains and evaluates nothing.

    An older checkpoint that a power cut has brought back in part is removed.
    """
    run, overrides = tmp_path / "run", ["train.kimg=0.036", "checkpoint.keep=1"]
    run_world(world, train_run, shards, run, overrides)
    before = checkpoint_digest(run)
    status = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps(status | {"state": "running"}))
    (run / "generator.safetensors").unlink()
    evaluated = (run / "evaluations.jsonl").read_text()
    (run / "checkpoints" / "00000000.012").mkdir()
    (run / "checkpoints" / "00000000.012" / "state.json").touch()
    again = run_world(world, train_run, shards, run, overrides)[0]
    assert (again["state"], again["start"], again["images_seen"]) == ("done", 36, 36)
    assert json.loads((run / "status.json").read_text())["state"] == "done"
    assert (run / "generator.safetensors").exists()
    assert not (run / "checkpoints" / "00000000.012").exists()
    assert checkpoint_digest(run) == before
    # A second evaluation without progress would count against the run.
    assert (run / "evaluations.jsonl").read_text() == evaluated
    (run / "generator.safetensors").unlink()
    assert run_world(world, train_run, shards, run, overrides)[0]["state"] == "done"
    assert (run / "generator.safetensors").exists()  # also if the end was recorded


def train_on_own_shards(shards: list[Path], run_dir: Path) -> Any:
    """Train with other shards on each rank, as on machines with copies of their own."""
    return train_run(shards[int(os.environ["RANK"])], run_dir, [])


def test_ranks_with_different_datasets_are_refused(shards: Path, tmp_path: Path) -> None:
    """All ranks stop at once, and the error names the rank, also if image sizes differ."""
    other = pack_noise(tmp_path, num=30, seed=1, size=64)
    with pytest.raises(AssertionError, match="rank 1: dataset differs from rank 0"):
        run_world(2, train_on_own_shards, [shards, other], tmp_path / "run")


def train_with_own_setting(shards: Path, run_dir: Path, overrides: list[str]) -> Any:
    """Train with another setting on each rank."""
    return train_run(shards, run_dir, [overrides[int(os.environ["RANK"])]])


def test_ranks_with_different_settings_are_refused(shards: Path, tmp_path: Path) -> None:
    """Also a setting that does not change what is learned, but when ranks communicate."""
    with pytest.raises(AssertionError, match=r"rank 1: train.kimg differs from rank 0"):
        run_world(
            2,
            train_with_own_setting,
            shards,
            tmp_path / "run",
            ["train.kimg=0.024", "train.kimg=0.036"],
        )


def test_too_few_images_to_evaluate_are_refused_before_training(tmp_path: Path) -> None:
    """The run ends before its first row of metrics."""
    few = pack_noise(tmp_path, num=5, seed=1)
    with pytest.raises(AssertionError, match="5 images are too few to evaluate with"):
        run_world(1, train_run, few, tmp_path / "run", [])
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_remedy_that_the_batch_does_not_allow_is_refused_at_the_start(
    shards: Path, tmp_path: Path
) -> None:
    """Only if the run may roll back; otherwise the remedy is never applied."""
    overrides = ["collapse.remedy=['loss.diversity.mode_seeking=1']", "train.kimg=0.024"]
    with pytest.raises(
        AssertionError, match=r"collapse.remedy: train.batch_size=12 cannot be split .*mode_seeking"
    ):
        run_world(1, train_run, shards, tmp_path / "run", ["collapse.action=rollback", *overrides])
    assert run_world(1, train_run, shards, tmp_path / "run", overrides)[0]["state"] == "done"


def test_damaged_newer_checkpoints_are_pruned_after_the_next_save(tmp_path: Path) -> None:
    """A run that resumed before a damaged checkpoint keeps what it saves from then on."""
    for images in (1000, 2000, 9000):
        checkpoints.save(tmp_path, images_seen=images, tensors={"a": torch.zeros(1)}, state={})
    checkpoints.prune(tmp_path, newest="00000002.000", keep=1, wanted=["00000001.000"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000001.000", "00000002.000"]


def test_removed_checkpoints_stay_removed_after_a_power_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their folder is synced once they are gone."""
    for images in (1000, 2000):
        checkpoints.save(tmp_path, images_seen=images, tensors={"a": torch.zeros(1)}, state={})
    synced: list[tuple[Path, list[str]]] = []

    def note(path: Path) -> None:
        synced.append((path, sorted(entry.name for entry in path.iterdir())))

    monkeypatch.setattr(checkpoints, "sync_path", note)
    checkpoints.prune(tmp_path, newest="00000002.000", keep=1)
    assert synced == [(tmp_path, ["00000002.000"])]


def stand_in_checkpointer(session: Any, network: torch.nn.Module) -> tuple[Checkpointer, Any]:
    """Return a checkpointer of one network, and an evaluator whose verdict is `healthy`."""
    gan: Any = SimpleNamespace(
        recalibrate_batch_norm=lambda seed: None,
        check_replicas=lambda: None,
        networks=lambda: {"generator.": network},
    )
    evaluator: Any = SimpleNamespace(
        verdict=SimpleNamespace(name="healthy"), best_value=3.0, best_images=1000,
        tracker=SimpleNamespace(restart=lambda images_seen: None),
    )  # fmt: skip
    return Checkpointer(session, Config(), gan=gan, evaluator=evaluator), evaluator


def test_weights_that_are_not_finite_are_not_healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The verdict may be older than what went wrong; a rollback must not return there."""
    network = torch.nn.Linear(1, 1)
    session: Any = SimpleNamespace(world=ALONE, run_dir=Path("run"))
    checkpointer, _ = stand_in_checkpointer(session, network)
    monkeypatch.setattr(checkpointer, "write", lambda must_succeed: None)
    for images, weight, healthy in ((1000, 1.0, 1000), (2000, math.nan, 1000), (3000, 1.0, 3000)):
        torch.nn.init.constant_(network.weight, weight)
        checkpointer.state.images_seen = images
        checkpointer.save(must_succeed=False)
        assert checkpointer.state.healthy_images == healthy


def test_a_rollback_keeps_the_best_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    """The restored one may be older and know of none; a better one was not saved."""
    session: Any = SimpleNamespace(world=ALONE, run_dir=Path("run"))
    checkpointer, evaluator = stand_in_checkpointer(session, torch.nn.Linear(1, 1))

    def restore(_: Any) -> None:
        evaluator.best_value, evaluator.best_images = None, None

    monkeypatch.setattr(checkpoints, "load", lambda path: None)
    monkeypatch.setattr(checkpointer, "restore", restore)
    evaluator.best_value, evaluator.best_images = 2.0, 2000
    checkpointer.roll_back()
    assert (evaluator.best_value, evaluator.best_images) == (3.0, 1000)


def test_failed_save_keeps_the_pointers_to_healthy_and_best_checkpoints(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both point to checkpoints that exist, also after a save failed for lack of space."""
    session: Any = SimpleNamespace(world=ALONE, run_dir=Path("run"))
    checkpointer, evaluator = stand_in_checkpointer(session, torch.nn.Linear(1, 1))
    for images, problem, expected in (
        (1000, None, (1000, 3.0, 1000)),
        (2000, "no space left", (1000, 3.0, 1000)),
        (3000, None, (3000, 2.0, 3000)),
    ):
        checkpointer.state.images_seen = images
        if images > 1000:
            evaluator.best_value, evaluator.best_images = 2.0, images
        monkeypatch.setattr(checkpointer, "write", lambda must_succeed, text=problem: text)
        assert checkpointer.save(must_succeed=False) == problem
        assert checkpointer.pointers() == expected


def test_newer_checkpoint_wins_over_an_older_generator_file(tmp_path: Path) -> None:
    """generator.safetensors of a finished run is outdated once the run was continued."""
    (tmp_path / "generator.safetensors").touch()
    (tmp_path / "generator.json").write_text('{"images_seen": 2000}')
    newest = checkpoints.save(
        tmp_path / "checkpoints", images_seen=2000, tensors={"a": torch.zeros(1)}, state={}
    )
    assert find_generator(tmp_path).weights.name == "generator.safetensors"
    newest = checkpoints.save(
        tmp_path / "checkpoints", images_seen=3000, tensors={"a": torch.zeros(1)}, state={}
    )
    assert find_generator(tmp_path).weights == newest / "tensors.safetensors"


def test_file_system_without_locks_causes_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The run starts nevertheless."""

    def refuse(handle: Any, operation: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", refuse)
    RunFolder(tmp_path / "run").close()
    assert "cannot be locked (Function not implemented)" in caplog.text


def test_evaluation_takes_remote_reals_from_the_first_shards() -> None:
    """Otherwise every shard would be fetched. Their dataset has a name of its own."""
    index = SimpleNamespace(fingerprint="abc", class_names=None)
    near: Any = SimpleNamespace(index=index, num_samples=1000, files=SimpleNamespace(remote=False))
    far: Any = SimpleNamespace(index=index, num_samples=1000, files=SimpleNamespace(remote=True))
    assert (
        real_images(near, None, num_samples=100).num_images,
        real_images(far, None, num_samples=100).num_images,
    ) == (
        1000,
        200,
    )
    assert real_images(far, None, num_samples=600).num_images == 1000
    assert real_images(far, None, num_samples=100).fingerprint == "abc/first 200"


def test_classes_with_digits_as_names_may_be_given_as_numbers() -> None:
    """They become text, as the names are."""
    assert load_config(None, ["data.classes=[1, 7]"]).data.classes == ("1", "7")


def test_weak_probe_is_replaced_by_random_features(
    shards: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`auto` says why: classes that look alike teach a probe nothing."""
    monkeypatch.setenv("DISTGAN_CACHE", str(tmp_path))
    _, reader = open_dataset(load_config(None, [f"data.shards={str(shards)!r}"]).data)
    for accuracy, name in ((0.6, "random-conv"), (0.9, "probe")):
        card = ProbeCard(reader.index.fingerprint, ("even", "odd"), accuracy, 1, 32, 4, 20, 10)
        path = probe_path(reader.index.fingerprint)
        Probe(ProbeNet(1, 4, 2), card).save(path)
        extractor, phrase = distgan.evaluation.evaluator.choose_extractor(
            Evaluation(), reader, world=ALONE
        )
        assert extractor.name == name
        assert ("90.0% right" if accuracy == 0.9 else "only 60%") in phrase


@pytest.mark.parametrize(
    ("where", "error"),
    [
        ("describe", OSError(errno.EIO, os.strerror(errno.EIO))),
        ("load_file", RuntimeError("unable to open file: Input/output error (5)")),
    ],
)
def test_unreadable_checkpoint_is_not_treated_as_damaged(
    where: str, error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of the file system ends the start, so that no older checkpoint is used."""
    for images in (1000, 2000):
        checkpoints.save(tmp_path, images_seen=images, tensors={"a": torch.zeros(1)}, state={})

    def fail(path: Path) -> Any:
        raise error

    monkeypatch.setattr(checkpoints, where, fail)
    with pytest.raises(
        UserError, match=r"cannot read the checkpoint .*00000002.000: .*Input/output error"
    ):
        checkpoints.load_latest(tmp_path, pytest.fail)
