"""Checkpoints are complete or absent, and loaded only if every byte is right."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from distgan.gan import GAN
from distgan.networks.generator_file import checkpoint_folders
from distgan.run import checkpoints
from distgan.run.checkpoints import HEAD, OLD_HEAD, CheckpointError

TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(3, dtype=torch.int64)}


def write(folder: Path, images_seen: int) -> Path:
    """Write a small checkpoint."""
    return checkpoints.save(
        folder, images_seen=images_seen, tensors=TENSORS, state={"wandb_id": "x"}
    )


def test_newest_checkpoint_is_loaded_as_it_was_saved(tmp_path: Path) -> None:
    """Tensors and state are equal; unfinished folders are ignored; pruning keeps the newest."""
    for images in (12, 999_000, 1_000_500):
        write(tmp_path, images)
    (tmp_path / ".000002000.000.tmp").mkdir()
    tensors, state = checkpoints.load_latest(tmp_path, pytest.fail)
    assert state["images_seen"] == 1_000_500
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)
    checkpoints.prune(tmp_path, newest="00001000.500", keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000999.000", "00001000.500"]


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_damaged_checkpoint_is_skipped_for_the_one_before(
    tmp_path: Path, name: str, damage: str
) -> None:
    """The warning names it. If no intact one is left, loading fails."""
    write(tmp_path, 1000)
    path = write(tmp_path, 2000) / name
    content = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content if damage == "flip" else content[:-3])
    told: list[str] = []
    _, state = checkpoints.load_latest(tmp_path, told.append)
    assert state["images_seen"] == 1000
    assert len(told) == 1 and "00002.000" in told[0] and "damaged" in told[0]
    (tmp_path / "00000001.000" / "manifest.json").write_text("[]")
    with pytest.raises(CheckpointError, match="all 2 checkpoints"):
        checkpoints.load_latest(tmp_path, told.append)


def test_failed_save_leaves_the_previous_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that fills up during a save raises, and leaves nothing half-written behind."""
    write(tmp_path, 1000)

    def full(_path: Path) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(checkpoints, "sync_path", full)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path, 2000)
    assert [path.name for path in tmp_path.iterdir()] == ["00000001.000"]
    assert checkpoints.load_latest(tmp_path, pytest.fail)[1]["images_seen"] == 1000


def test_manifest_cannot_name_files_outside_the_folder(tmp_path: Path) -> None:
    """Only the two known files are read, whatever the manifest lists."""
    path = write(tmp_path, 1000)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["../../etc/passwd"] = {"num_bytes": 1, "sha256": ""}
    (path / "manifest.json").write_text(json.dumps(manifest))
    assert checkpoints.load(path)[1]["images_seen"] == 1000
    shutil.rmtree(path)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_optimizer_step_after_loading_is_bit_identical(layout: torch.memory_format) -> None:
    """Packing and unpacking keeps the next step exact, for weights of either memory layout."""

    def make(weight: torch.Tensor) -> tuple[torch.nn.Parameter, torch.optim.Optimizer]:
        parameter = torch.nn.Parameter(weight.clone(memory_format=torch.preserve_format))
        return parameter, torch.optim.Adam([parameter], lr=0.1, fused=True)

    def step(parameter: torch.nn.Parameter, optimizer: torch.optim.Optimizer) -> None:
        parameter.grad = torch.randn(
            parameter.shape, generator=torch.Generator().manual_seed(1)
        ).to(memory_format=layout)
        optimizer.step()

    parameter, optimizer = make(torch.randn(4, 3, 2, 2).to(memory_format=layout))
    step(parameter, optimizer)
    tensors, plain = checkpoints.pack_optimizer("o", optimizer)
    stored = {
        name: tensor.clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    again, other = make(parameter.detach())
    checkpoints.unpack_optimizer("o", other, stored, json.loads(json.dumps(plain)))
    step(parameter, optimizer)
    step(again, other)
    assert torch.equal(parameter, again)


def test_checkpoint_with_the_old_name_of_the_head_is_restored(gan: GAN) -> None:
    """Tensors named `discriminator.judge.*` become the weights of `discriminator.head`."""
    tensors, plain = gan.state()
    stored = {name.replace(HEAD, OLD_HEAD): tensor.clone() for name, tensor in tensors.items()}
    assert "discriminator.judge.weight" in stored
    torch.nn.init.zeros_(gan.raw_discriminator.head.weight)
    gan.load_state(stored, plain)
    assert torch.equal(gan.raw_discriminator.head.weight, stored["discriminator.judge.weight"])


def test_folders_with_other_names_are_left_alone(tmp_path: Path) -> None:
    """What users put beside the checkpoints is neither removed nor taken for a checkpoint."""
    others = ["00000000.032-backup", "2025-notes", ".mine.tmp"]
    for name in others:
        (tmp_path / name).mkdir()
    for images in (1000, 2000, 3000):
        write(tmp_path, images)
    checkpoints.prune(tmp_path, newest="00000003.000", keep=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*others, "00000003.000"])
    run = tmp_path / "run"
    shutil.copytree(tmp_path / "00000003.000", run / "checkpoints" / "00000003.000")
    shutil.copytree(tmp_path / "00000003.000", run / "checkpoints" / "00000003.000-backup")
    assert [path.name for path in checkpoint_folders(run)] == ["00000003.000"]
    assert [path.name for path in checkpoints.list_checkpoints(tmp_path)] == ["00000003.000"]
