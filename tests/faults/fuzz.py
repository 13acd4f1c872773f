"""Fuzz everything that is read from a file: no traceback, no hang, no memory out of proportion.

python -m tests.faults.fuzz --minutes 10           all targets in turn
python -m tests.faults.fuzz --minutes 1 sweep      one target

An input that fails is saved in tests/faults/corpus/<target>/, from which the tests read it again.
"""

import argparse
import hashlib
import json
import random
import signal
import struct
import sys
import tempfile
import time
import traceback
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
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
)  # fmt: skip
from shards.errors import ShardError
from shards.format.index import read_index
from shards.images import BadImage, decode_image
from shards.pack import pack
from shards.reader import ShardReader
from shards.sources.registry import open_source
from tests.faults.limits import MAX_BYTES, MAX_SECONDS

CORPUS = Path(__file__).parent / "corpus"


@dataclass(frozen=True)
class Target:
    """A reader: inputs that it accepts, the file to write an input to, and how to read that."""

    originals: tuple[bytes, ...]
    file: Path
    read: Callable[[], Any]
    errors: tuple[type[Exception], ...] = (UserError, ShardError)

    def check(self, data: bytes) -> None:
        """Read an input; raises what the reader must not raise, or AssertionError if it is late."""
        self.file.write_bytes(data)
        with no_hang(), warnings.catch_warnings(), suppress(*self.errors):
            warnings.simplefilter("ignore")  # Pillow's about odd but readable content
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


# ------------------------------------------------------------------------------------------ inputs


ODD_VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 3, 2**31, 2**63, -(2**70), 10**400, 1.5, 1e308, float("nan"), float("inf"),
    "", "x", "\x1b[31m", "\ud800", "9" * 50, [], [[]], [1, 2], {}, {"a": None}, [None] * 3,
)  # fmt: skip
TOKENS = (
    b"null", b"{}", b"[]", b"-1", b"1e999", b"NaN", b"Infinity", b'"', b"\n", b"\\", b"\0",
    b"[" * 2000, b"{" * 2000, b"9" * 5000, b"true",
    b"=", b",", b"'", b"\xff\xfe", b"1979-05-27", b"0x7f",
)  # fmt: skip


def mutate(data: bytes, draw: random.Random) -> bytes:
    """Return an input with some of its bytes or, if it is JSON, one of its values changed."""
    if draw.random() < 0.4:
        with suppress(ValueError, RecursionError):
            return edit_json(data, draw)
    changed = bytearray(data)
    for _ in range(draw.randint(1, 6)):
        start = draw.randint(0, len(changed))
        stop = min(len(changed), start + draw.choice((1, 4, 30, 600)))
        action = draw.randrange(6)
        if action == 0:
            del changed[start:stop]
        elif action == 1:
            changed[start:stop] = changed[start:stop] * 2
        elif action == 2:
            changed[start:stop] = draw.randbytes(stop - start)
        elif action == 3:
            changed[start:stop] = draw.choice((b"\0", b"\xff", b"7")) * (stop - start)
        elif action == 4:
            changed[start:start] = draw.choice(TOKENS)
        else:
            del changed[start:]
    return bytes(changed)


def edit_json(data: bytes, draw: random.Random) -> bytes:
    """Return JSON, or one line of it, with one value at any depth exchanged or removed.

    Raises ValueError if it is no JSON object or list.
    """
    lines = data.splitlines()
    is_lines = len(lines) > 1 and lines[0].startswith(b"{") and lines[0].endswith(b"}")
    number = draw.randrange(len(lines)) if is_lines else 0
    tree = json.loads(lines[number] if is_lines else data)
    place: Any = tree
    while True:
        if not isinstance(place, dict | list) or not place:
            raise ValueError("nothing to edit")
        key = draw.choice(list(place) if isinstance(place, dict) else range(len(place)))
        inner = place[key]
        if not isinstance(inner, dict | list) or not inner or draw.random() < 0.3:
            break
        place = inner
    if draw.random() < 0.2:
        del place[key]
    else:
        place[key] = draw.choice(ODD_VALUES)
    text = json.dumps(tree).encode(errors="surrogatepass")
    return b"\n".join([*lines[:number], text, *lines[number + 1 :]]) if is_lines else text


# ----------------------------------------------------------------------------------------- targets


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

    tar = (shards / "000000.tar").read_bytes()[:8192]
    return {
        "index": Target(
            ((shards / "index.json").read_bytes(),), shards / "index.json", read_shards
        ),
        "spans": Target(((shards / "spans.npy").read_bytes(),), shards / "spans.npy", read_shards),
        "tar": Target((tar,), folder / "images.tar", read_archive),
    }


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
        "weights": Target(((folder / "generator.safetensors").read_bytes()[:4096],),
                          folder / "other.safetensors",
                          lambda: load_other(folder, description)),
        "manifest": Target(((checkpoint / "manifest.json").read_bytes(),),
                           checkpoint / "manifest.json", lambda: checkpoints.load(checkpoint)),
        "probe": Target((card,), card_file, read_probe),
        "probe-file": Target((weights[:64], probe.read_bytes()[: 8 + header_bytes + 64]),
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


# ------------------------------------------------------------------------------------ command line


def fuzz(target: Target, draw: random.Random, *, seconds: float, save_to: Path) -> tuple[int, int]:
    """Mutate and read inputs for some seconds; save those that fail; return (tried, failed)."""
    deadline, tried, failed = time.monotonic() + seconds, 0, 0
    while time.monotonic() < deadline:
        data = draw.choice(target.originals)
        for _ in range(draw.choice((1, 1, 2, 5))):
            data = mutate(data, draw)
        tried += 1
        try:
            check_memory(target, data)
        except Exception:
            failed += 1
            save_to.mkdir(parents=True, exist_ok=True)
            (save_to / hashlib.sha256(data).hexdigest()[:12]).write_bytes(data)
            traceback.print_exc(limit=-3)
    return tried, failed


def check_memory(target: Target, data: bytes) -> None:
    """Read an input; raises AssertionError if that takes more memory than any file should."""
    tracemalloc.start(1)
    try:
        target.check(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < MAX_BYTES, f"{peak:,} bytes of memory for {len(data):,} bytes of input"


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=1.0, help="for all targets together")
    parser.add_argument("--seed", type=int, help="of the mutations; random if not given")
    parser.add_argument("targets", nargs="*", help="names of targets; all if none is given")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as temporary:
        targets = make_targets(Path(temporary))
        names = options.targets or list(targets)
        draw, num_failed = random.Random(options.seed), 0
        for name in names:
            seconds = 60 * options.minutes / len(names)
            tried, failed = fuzz(targets[name], draw, seconds=seconds, save_to=CORPUS / name)
            num_failed += failed
            print(f"{name}: {tried:,} inputs, {failed} failed", flush=True)
    sys.exit(num_failed > 0)


if __name__ == "__main__":
    main()
