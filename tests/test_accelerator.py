"""How a process joins a run: device, precision, open files, and worlds that are refused."""

import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from distgan.config.schema import Train
from distgan.errors import UserError
from distgan.gan import GAN
from distgan.runtime.accelerator import (
    allow_open_files,
    build_accelerator,
    check_world,
    choose_precision,
    reset_accelerator,
    runs_on_cpu,
)
from tests.worlds import run_world, train_run

FakeGpus = Callable[..., None]


@pytest.fixture
def fake_gpus(monkeypatch: pytest.MonkeyPatch) -> FakeGpus:
    """Return a function that makes torch report GPUs."""

    def fake(count: int, *, capability: tuple[int, int] = (9, 0)) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)

    return fake


def test_tests_run_on_the_cpu_of_a_machine_with_gpus(fake_gpus: FakeGpus) -> None:
    """Except for those marked `gpu`."""
    fake_gpus(1)
    assert runs_on_cpu()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


def test_more_processes_than_gpus_are_refused(
    fake_gpus: FakeGpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Accelerate would put two on one GPU, and NCCL would fail with a message of its own."""
    fake_gpus(3)
    monkeypatch.delenv("ACCELERATE_USE_CPU")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    with pytest.raises(UserError, match=r"8 processes on a node with 3 GPUs.* --num_processes 3"):
        build_accelerator(Train())


@pytest.mark.parametrize(
    ("capability", "precision"),
    [((9, 0), "bf16"), ((8, 0), "bf16"), ((7, 5), "fp16"), ((7, 0), "fp16"), ((6, 1), "no")],
)
def test_auto_picks_the_fast_precision_of_a_gpu(
    capability: tuple[int, int], precision: str, fake_gpus: FakeGpus
) -> None:
    """A T4, of capability 7.5, has no bf16 but multiplies fp16 several times as fast as fp32."""
    fake_gpus(1, capability=capability)
    assert choose_precision("auto", "no", on_cpu=False)[0] == precision


def test_the_launcher_decides_the_precision_if_it_names_one(fake_gpus: FakeGpus) -> None:
    """With train.precision=launcher its `no` counts too. A CPU cannot train in fp16."""
    fake_gpus(1)
    assert choose_precision("auto", "fp16", on_cpu=False)[0] == "fp16"
    assert choose_precision("launcher", "no", on_cpu=False)[0] == "no"
    assert choose_precision("auto", "fp16", on_cpu=True)[0] == "no"
    with pytest.raises(UserError, match="a CPU cannot train in it"):
        choose_precision("launcher", "fp16", on_cpu=True)


def test_float32_is_not_tf32(gan: GAN) -> None:
    """Gradient penalties are computed in full precision, on GPUs too."""
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32


def test_a_later_run_in_the_same_process_need_not_be_deterministic() -> None:
    """Algorithms are fast again if they may differ."""
    found = []
    for deterministic in (True, False):
        build_accelerator(Train(deterministic=deterministic))
        found.append(torch.are_deterministic_algorithms_enabled())
        reset_accelerator()
    assert found == [True, False]


def open_many_files(count: int, soft_limit: int) -> int:
    """Open files under a low limit that may be raised; return how many were open at once."""
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (soft_limit, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    )
    allow_open_files(count + 50)
    return len([open(os.devnull) for _ in range(count)])


def test_a_large_world_may_open_enough_files() -> None:
    """Rank zero has a connection to every other rank; many machines allow 1,024 by default."""
    assert run_world(1, open_many_files, 300, 128) == [300]


def test_a_limit_that_cannot_be_raised_is_an_error() -> None:
    """The line names the limit."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard == resource.RLIM_INFINITY:
        pytest.skip("this machine has no limit")
    with pytest.raises(UserError, match=f"allows {hard}"):
        allow_open_files(hard + 1)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"WORLD_SIZE": "2"}, "the launcher started 2 processes"),
        ({"SLURM_STEP_NUM_TASKS": "4"}, "srun started 4 tasks"),
        (
            {"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1"},
            "asked for several processes, but started one",
        ),
    ],
)
def test_a_world_smaller_than_the_one_asked_for_is_refused(
    environment: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each process would believe to be alone, and all would write to the same run folder."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=expected):
        check_world(1)


def train_with_own_precision(shards: Path, run_dir: Path) -> None:
    """Train on two ranks whose hardware differs."""
    os.environ["ACCELERATE_MIXED_PRECISION"] = ("no", "bf16")[int(os.environ["RANK"])]
    train_run(shards, run_dir, ["train.kimg=0.024"])


def test_ranks_with_another_precision_are_refused(shards: Path, tmp_path: Path) -> None:
    """On nodes with different GPUs `auto` may choose bf16 on one and fp32 on the other."""
    with pytest.raises(AssertionError, match="rank 1: precision differs from rank 0"):
        run_world(2, train_with_own_precision, shards, tmp_path / "run")
