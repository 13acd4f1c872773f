"""The folder that packing writes to: who may write, what it already holds, and its index."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shards.errors import ShardError, printable
from shards.files import locked, read_regular, readable_errors, write_atomic
from shards.format.index import (
    INDEX_FILE,
    LABELS_FILE,
    RAW,
    REJECTED_FILE,
    SPANS_FILE,
    WORK_FOLDER,
    ShardIndex,
    read_index,
)
from shards.format.raw import npy_of_labels, npy_of_spans
from shards.images import OTHER_DEPTH
from shards.pack_shards import FinishedShard, combine_sha256, source_sha256
from shards.pack_workers import Packing
from shards.sources.source import Skipped

_LEFTOVER = re.compile(r"\.?(\d+)\..*tmp")


@dataclass(frozen=True)
class OutputFolder:
    """The folder into which one packing is written, with its work folder while that takes."""

    path: Path
    packing: Packing

    @property
    def work(self) -> Path:
        return self.path / WORK_FOLDER

    @property
    def name(self) -> str:
        """The folder as messages name it."""
        return printable(self.path)

    @contextmanager
    def reserved(
        self, busy: str, *, bad_images: str, workers: int | None
    ) -> Iterator[ShardIndex | None]:
        """Hold the folder for this process alone, and remove the work folder at the end.

        Gives the index if the folder holds the finished dataset; it is not locked then. Raises
        ShardError(busy) if another process packs into it, and for a folder of something else.
        """
        with readable_errors(self.path, doing="cannot pack into"):
            index = self._read_finished(bad_images, workers)
            if index is not None:
                # It may remain from a pack that died after writing the index.
                shutil.rmtree(self.work, ignore_errors=True)
                yield index
                return
            self.check_empty()
            with locked(self.work / "lock", busy=busy):
                # The previous holder of the lock may have finished the dataset.
                yield self._read_finished(bad_images, workers)
                shutil.rmtree(self.work, ignore_errors=True)
            # Once more without the lock, because NFS keeps an open file under another name.
            shutil.rmtree(self.work, ignore_errors=True)

    def check_empty(self) -> None:
        """Raise ShardError if the folder holds files, but no shards."""
        if self.path.is_dir() and not self.work.is_dir() and any(self.path.iterdir()):
            raise ShardError(
                f"{self.name} is not empty and holds no packed shards: give a new folder"
            )

    def read_same(self) -> ShardIndex | None:
        """Return the index of the finished dataset, or None if there is none.

        Raises ShardError if it is another dataset.
        """
        if not (self.path / INDEX_FILE).exists():
            return None
        index = read_index(self.path)
        if index.plan != self.packing.plan:
            raise ShardError(
                f"{self.name} holds another dataset (of other images or settings): "
                "give a new folder"
            )
        return index

    def _read_finished(self, bad_images: str, workers: int | None) -> ShardIndex | None:
        """Return the index of the finished dataset, or None if there is none.

        Raises ShardError if it is another dataset, or if files of the source were changed since.
        They are read to find out, because the time of a change does not survive a copy.
        """
        index = self.read_same()
        if index is None:
            return None
        recorded = index.source_sha256  # absent in datasets of earlier versions
        if recorded is not None and recorded != source_sha256(self.packing, workers):
            raise ShardError(
                f"{self.name} was packed before files of the source were changed: give a new "
                f"folder, or delete {self.name} to pack it again"
            )
        count = self._count_broken(index)
        if count > 0 and bad_images == "fail":
            raise ShardError(
                f"{self.name} holds these images without {count} broken "
                f"image{'s' if count > 1 else ''} (see {REJECTED_FILE}): accept that with "
                "--bad-images skip, or repair them and give a new folder"
            )
        if count > 0 and self.packing.any_bits and OTHER_DEPTH in self._rejections():
            raise ShardError(
                f"{self.name} was packed before --bits was chosen, without the images of another "
                f"depth (see {REJECTED_FILE}): give a new folder"
            )
        return index

    def _count_broken(self, index: ShardIndex) -> int:
        """Return how many images of the source were left out, besides files that are no images."""
        try:
            names = [json.loads(line)["name"] for line in self._rejections().splitlines()]
        except (ValueError, LookupError, TypeError):
            names = []
        if len(names) != index.num_rejected:  # the list was deleted or damaged
            return index.num_rejected - len(self.packing.source.skipped)
        known = set(self.packing.source.names) if names else set()
        return sum(name in known for name in names)

    def _rejections(self) -> str:
        """Return the list of what was left out; it may have been deleted since."""
        with suppress(OSError):
            return read_regular(self.path / REJECTED_FILE).decode(errors="replace")
        return ""

    def claim(
        self, shards: Container[int] | None = None, *, check: Callable[[], None] = lambda: None
    ) -> None:
        """Record the plan in the work folder, or check that it is the same, and what else is to be.

        Then removes what a killed pack had half written of `shards`, by default of all. Raises
        ShardError, also from `check`, and removes nothing in that case.
        """
        plan_file = self.work / "plan"
        with locked(self.work / "plan.lock", busy=None):
            if not plan_file.exists():
                write_atomic(plan_file, self.packing.plan)
            elif plan_file.read_text() != self.packing.plan:
                raise ShardError(
                    f"{self.name} holds an unfinished pack of other images or settings: "
                    "delete it or give a new folder"
                )
            check()
        for leftover in self.work.glob("*.tmp"):
            match = _LEFTOVER.fullmatch(leftover.name)
            if shards is None or (match is not None and int(match[1]) in shards):
                leftover.unlink()

    def write_index(self, shards: list[FinishedShard]) -> ShardIndex:
        """Write the files that describe all shards. `index.json` is last and makes the dataset."""
        packing, out = self.packing, self.path
        source, compressed = packing.source, packing.compressed
        rejected = [image for shard in shards for image in shard.rejected]
        if len(rejected) == len(source):
            raise ShardError(
                f"all {len(source):,} images are broken (the first is {rejected[0].name}, "
                f"{rejected[0].reason}): give other images and a new folder"
            )
        left_out = [*source.skipped, *(Skipped(image.name, image.reason) for image in rejected)]
        if left_out:
            lines = [json.dumps(image._asdict()) for image in left_out]
            write_atomic(out / REJECTED_FILE, "\n".join(lines) + "\n")
        labels_sha256 = class_counts = spans_sha256 = None
        if source.labels is not None and source.class_names is not None:
            slots = np.delete(np.arange(len(source)), [image.slot for image in rejected])
            labels = source.labels[packing.items(slots)]
            labels_sha256 = _write_side_file(out / LABELS_FILE, npy_of_labels(labels))
            class_counts = tuple(np.bincount(labels, minlength=len(source.class_names)).tolist())
        if compressed is not None:
            spans = np.concatenate([shard.spans for shard in shards])
            spans_sha256 = _write_side_file(out / SPANS_FILE, npy_of_spans(spans))
        content = None
        if not source.in_memory:
            content = combine_sha256(shard.content_sha256 for shard in shards)
        index = ShardIndex(
            path=out,
            image_shape=packing.raw.image_shape,
            num_samples=len(source) - len(rejected),
            class_names=source.class_names,
            class_counts=class_counts,
            labels_sha256=labels_sha256,
            cls=packing.raw.cls,
            num_rejected=len(left_out),
            shards=tuple(shard.record for shard in shards),
            plan=packing.plan,
            encoding=RAW if compressed is None else compressed.encoding,
            quality=None if compressed is None else compressed.quality,
            spans_sha256=spans_sha256,
            source_sha256=content,
            bits=packing.raw.bits,
        )
        write_atomic(out / INDEX_FILE, index.to_json())
        return index


def _write_side_file(path: Path, data: bytes) -> str:
    """Write a file beside the tars and return its sha256."""
    write_atomic(path, data)
    return hashlib.sha256(data).hexdigest()
