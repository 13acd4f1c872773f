"""What is fuzzed: a reader for each kind of file that distgan reads, and inputs that it accepts."""

import io
import json
import signal
import struct
import tarfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save

from distgan.commands.sweep_file import cells, plan_runs, read_sweep
from distgan.config.load import load_config
from distgan.errors import UserError
from distgan.evaluation.probe import Probe, ProbeCard, ProbeNet
from distgan.networks.base import GeneratorSpec
from distgan.networks.build import build_generator
from distgan.networks.generator_file import load_generator, save_generator
from distgan.run import checkpoints
from distgan.run.files import (
    EvaluationRow,
    Event,
    Provenance,
    Status,
    append_row,
    read_json,
    read_models,
    read_rows,
    read_toml,
)
from shards.errors import ShardError
from shards.format.index import read_index
from shards.images import BadImage, decode_image
from shards.pack import pack
from shards.reader import ShardReader
from shards.sources.registry import open_source
from tests.faults.limits import MAX_SECONDS

CORPUS = Path(__file__).parent / "corpus"
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")


@dataclass(frozen=True)
class Target:
    """A reader: inputs (the first one is whole), the file to write one to, how to read it."""

    originals: tuple[bytes, ...]
    file: Path
    read: Callable[[], Any]
    errors: tuple[type[Exception], ...] = (UserError, ShardError)

    def check(self, data: bytes) -> None:
        """Read an input; raises what the reader must not raise, or AssertionError if it is late."""
        self.file.write_bytes(data)
        try:
            with no_hang(), warnings.catch_warnings(), suppress(*self.errors):
                warnings.simplefilter("ignore")  # Pillow's about odd but readable content
                self.read()
        finally:
            self.file.write_bytes(self.originals[0])  # which other readers may need

    def accept(self) -> None:
        """Read the first input, which is whole; raises the reader's error if it is not."""
        self.file.write_bytes(self.originals[0])
        self.read()


@contextmanager
def no_hang(seconds: int = MAX_SECONDS) -> Iterator[None]:
    """Raise AssertionError in the block if it takes longer."""

    def late(*_: object) -> None:
        raise AssertionError(f"still busy after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def make_targets(folder: Path) -> dict[str, Target]:
    """Return all targets by name; their files are in `folder`."""
    return {
        name: replace(target, originals=target.originals + stored_inputs(name))
        for make in (shard_targets, network_targets, run_targets)
        for name, target in make(folder).items()
    }


def stored_inputs(name: str) -> tuple[bytes, ...]:
    """Return the inputs in the corpus of a target."""
    return tuple(path.read_bytes() for path in sorted((CORPUS / name).glob("*")))


def shard_targets(folder: Path) -> dict[str, Target]:
    """Return the readers of packed shards and of images."""
    shards = pack("digits", folder / "shards", size=8, encoding="png", workers=1).path

    def read_shards() -> None:
        reader = ShardReader(read_index(shards))
        reader.gather(np.arange(0, reader.num_samples, 97))

    def read_archive() -> None:
        source = open_source(folder / "images.tar")
        for item in range(len(source)):
            with suppress(BadImage):
                decode_image(source.read(item), size=8, channels=3)

    pictures = [encoded(image_format) for image_format in FORMATS]
    return {
        "index": Target(
            ((shards / "index.json").read_bytes(),), shards / "index.json", read_shards
        ),
        "spans": Target(((shards / "spans.npy").read_bytes(),), shards / "spans.npy", read_shards),
        "labels": Target(
            ((shards / "labels.npy").read_bytes(),), shards / "labels.npy", read_shards
        ),
        "tar": Target((archive(pictures),), folder / "images.tar", read_archive),
        "image": Target(
            tuple(pictures),
            folder / "image",
            lambda: decode_image((folder / "image").read_bytes(), size=8, channels=3),
            errors=(BadImage,),
        ),
    }


def encoded(image_format: str) -> bytes:
    """Return a picture of 12 x 9 pixels in a format, with an orientation where it can have one."""
    pixels = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    file = io.BytesIO()
    options = {"exif": exif} if image_format in ("PNG", "JPEG", "WEBP", "TIFF") else {}
    Image.fromarray(pixels).save(file, image_format, **options)
    return file.getvalue()


def archive(pictures: list[bytes]) -> bytes:
    """Return a WebDataset tar of pictures, each with a class."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for number, (image_format, picture) in enumerate(zip(FORMATS, pictures, strict=True)):
            members = {image_format.lower(): picture, "cls": str(number % 2).encode()}
            for ending, content in members.items():
                member = tarfile.TarInfo(f"{number}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return file.getvalue()


def network_targets(folder: Path) -> dict[str, Target]:
    """Return the readers of checkpoints, generators and probes."""
    spec = GeneratorSpec(architecture="dcgan", image_size=32, channels=1, width=2, latent_dim=4)
    save_generator(build_generator(spec), spec, folder, facts={"images_seen": 12})
    description = (folder / "generator.json").read_bytes()
    checkpoint = checkpoints.save(
        folder / "run", images_seen=12, tensors={"a": torch.zeros(2)}, state={"b": 1}
    )
    probe = folder / "probe.safetensors"
    Probe(ProbeNet(1, 2, 2), ProbeCard("0" * 64, ("a", "b"), 0.9, 1, 8, 2, 20, 10)).save(probe)
    header_bytes = struct.unpack("<Q", probe.read_bytes()[:8])[0]
    weights = probe.read_bytes()[8 + header_bytes :]
    card = json.loads(probe.read_bytes()[8 : 8 + header_bytes])["__metadata__"]["probe"].encode()
    card_file = folder / "card.json"

    def read_probe() -> None:
        """Put the card into a file whose tensors are whole."""
        text = card_file.read_bytes().decode(errors="replace")
        tensors = {n: t.contiguous() for n, t in ProbeNet(1, 2, 2).state_dict().items()}
        probe.write_bytes(save(tensors, {"probe": text}))
        Probe.load(probe)

    return {
        "generator": Target((description,), folder / "generator.json",
                            lambda: load_generator(folder / "generator.safetensors")),
        "weights": Target(((folder / "generator.safetensors").read_bytes(),),
                          folder / "other.safetensors",
                          lambda: load_other(folder, description)),
        "manifest": Target(((checkpoint / "manifest.json").read_bytes(),),
                           checkpoint / "manifest.json", lambda: checkpoints.load(checkpoint)),
        "probe": Target((card,), card_file, read_probe),
        "probe-file": Target((probe.read_bytes(), weights[:64]),
                             folder / "file.safetensors",
                             lambda: Probe.load(folder / "file.safetensors")),
    }  # fmt: skip


def load_other(folder: Path, description: bytes) -> None:
    """Load weights that have a whole description."""
    (folder / "other.json").write_bytes(description)
    load_generator(folder / "other.safetensors")


def run_targets(folder: Path) -> dict[str, Target]:
    """Return the readers of run folders, settings and sweeps."""
    status = (
        b'{"state": "done", "reason": "x", "verdict": "healthy (y)", "images_seen": 12, "time": ""}'
    )
    rows = b'{"progress/images": 12, "loss/d": 1.5}\n{"progress/images": 24, "loss/d": 0.5}\n'
    evaluations = (
        b'{"progress/images": 12, "values": {"quality/frechet": 1.5}, "reals": {}, '
        b'"protocol": {}}\n'
    )
    events = b'{"kind": "resume", "images_seen": 12, "what": "x"}\n'
    toml = b"[train]\nkimg = 3\nbatch_size = 12\n[data]\nclasses = ['a', \"b\"]\n"
    sweep = (
        b"kimg = 3\nseeds = [0, 1]\n[fixed]\ntrain.batch_size = 12\n"
        b"[variants.a]\noptim.lr_g = 1e-4\n"
        b"[grid]\nnetworks.latent_dim = [8, 16]\n[random]\nnum = 2\n[random.settings]\n"
        b"optim.lr_d = {log_uniform = [1e-4, 1e-3]}\n"
    )
    lines = folder / "rows.jsonl"

    def read_lines() -> None:
        for model in (EvaluationRow, Event):
            read_models(lines, model)
        append_row(lines, {"progress/images": 36})
        assert read_rows(lines)[-1] == {"progress/images": 36}, "a row after damage is lost"

    def read_settings() -> None:
        read_toml(folder / "preset.toml")
        load_config(str(folder / "preset.toml"))

    def read_plan() -> None:
        found = read_sweep(folder / "sweep.toml")
        if len(list(zip(range(50), cells(found), strict=False))) < 50 and not found.data:
            plan_runs(found, folder=folder / "runs")

    return {
        "status": Target((status,), folder / "status.json",
                         lambda: [read_json(folder / "status.json", each)
                                  for each in (Status, Provenance)]),
        "jsonl": Target((rows, evaluations, events), lines, read_lines),
        "toml": Target((toml,), folder / "preset.toml", read_settings),
        "sweep": Target((sweep,), folder / "sweep.toml", read_plan),
    }  # fmt: skip
