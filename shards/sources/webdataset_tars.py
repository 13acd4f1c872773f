"""Tars in which members with one key are one sample, as the tools of WebDataset write them."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shards.errors import ShardError, printable
from shards.images import EXTENSIONS
from shards.sources.source import (
    Entry,
    Skipped,
    Source,
    check_unchanged,
    digest_of,
    extension_of,
    is_hidden,
    is_image_name,
    list_images,
)
from shards.sources.tars import ScannedTar, TarSource, scan_tar
from shards.sources.texts import Texts

_IMAGE_FIELDS = EXTENSIONS | {".npy"}
_JSON_LABELS = ("cls", "label", "labels", "class", "class_id", "class_name", "category", "target")
_MAX_CLS_BYTES, _MAX_JSON_BYTES = 20, 2**20


class _Sample(NamedTuple):
    """A sample that has an image."""

    path_number: int
    image: Entry
    label: int | None


def open_tar(path: Path, *, with_labels: bool) -> Source:
    """Open a tar of image files, or of samples: with `.cls` members, or `.npy` in no folder."""
    return open_scanned(scan_tar(path), open_unchanged, with_labels=with_labels)


def open_scanned(
    tar: ScannedTar, reopen: Callable[[ScannedTar], BinaryIO], *, with_labels: bool
) -> TarSource:
    """Open a tar of image files, or of samples, whose labels `reopen` is for; see `open_tar`."""
    has_images = any(is_image_name(entry.path) for entry in tar.entries)
    if any(
        entry.path.endswith(".cls")
        or (
            not has_images  # beside images, an array is something else
            and entry.path.endswith(".npy")
            and "/" not in entry.path.removeprefix("./")
        )
        for entry in tar.entries
    ):
        return _open_samples([tar], reopen, with_labels=with_labels)
    items, offsets = list_images(tar.entries, skipped=tar.skipped, with_labels=with_labels)
    return TarSource(
        **vars(items),
        paths=(tar.path,),
        path_stamps=np.array([tar.stamp], np.int64),
        path_of_item=np.zeros(len(offsets), np.int32),
        offsets=np.array(offsets, np.int64),
    )


def open_webdataset(paths: Iterable[Path], *, with_labels: bool) -> Source:
    """Open tars of samples: the image is chosen by extension, the label is in `.cls`."""
    return _open_samples(
        [scan_tar(path) for path in paths], open_unchanged, with_labels=with_labels
    )


def open_unchanged(tar: ScannedTar) -> BinaryIO:
    """Open a tar once more, if it is still the one that was scanned."""
    file = open(tar.path, "rb")  # noqa: SIM115
    check_unchanged(printable(tar.path), os.fstat(file.fileno()), tar.stamp)
    return file


def _open_samples(
    tars: list[ScannedTar], reopen: Callable[[ScannedTar], BinaryIO], *, with_labels: bool
) -> TarSource:
    samples: list[_Sample] = []
    left_out: list[Skipped] = []
    others = Counter[str]()
    for path_number, tar in enumerate(tars):
        path, entries, skipped, _ = tar
        left_out += [Skipped(_where(path, name), reason) for name, reason in skipped]
        with reopen(tar) as file:
            for fields in _group(path, entries, others):
                label = fields.pop("cls", None)
                image = _image_of(path, fields, left_out, others)
                if image is None:
                    continue
                number = None
                if with_labels and label is not None:
                    number = _class_number(file, path, label)
                elif with_labels and "json" in fields:
                    _refuse_json_label(file, path, fields["json"])
                samples.append(_Sample(path_number, image, number))
    names = [_where(tars[sample.path_number].path, sample.image.path) for sample in samples]
    sizes = [sample.image.size for sample in samples]
    labels, class_names = _classes(names, [sample.label for sample in samples])
    return TarSource(
        names=Texts(names),
        sizes=np.array(sizes, np.int64),
        labels=labels,
        class_names=class_names,
        digest=digest_of(names, sizes, labels),
        skipped=left_out,
        other_files=others,
        paths=tuple(tar.path for tar in tars),
        path_stamps=np.array([tar.stamp for tar in tars], np.int64),
        path_of_item=np.array([sample.path_number for sample in samples], np.int32),
        offsets=np.array([sample.image.place for sample in samples], np.int64),
    )


def _group(path: Path, entries: list[Entry], others: Counter[str]) -> list[dict[str, Entry]]:
    """Group members into samples, sorted by key, whose fields are named by extension.

    Names are split by the rules of WebDataset, but the members of a sample need not be adjacent.
    """
    from webdataset.tariterators import base_plus_ext

    samples: dict[str, dict[str, Entry]] = {}
    for entry in entries:
        key, extension = base_plus_ext(entry.path)
        if key is None or is_hidden(entry.path):
            others[extension_of(entry.path)] += 1
            continue
        fields = samples.setdefault(key if "/" in key else f"/{key}", {})
        if fields.setdefault(extension.lower(), entry) is not entry:
            raise ShardError(f"{_where(path, entry.path)} is there twice: write each sample once")
    return [samples[key] for key in sorted(samples)]


def _image_of(
    path: Path, fields: dict[str, Entry], skipped: list[Skipped], others: Counter[str]
) -> Entry | None:
    """Return the one image of a sample, `jpg` rather than `left.jpg`, or None."""
    images = [name for name in fields if extension_of(f"x.{name}") in _IMAGE_FIELDS]
    candidates = [name for name in images if "." not in name] or images
    if len(candidates) > 1:
        where = _where(path, fields[candidates[0]].path)
        raise ShardError(
            f"{where} is one of {len(candidates)} images of a sample ({', '.join(candidates)}): "
            "keep one"
        )
    for name, entry in fields.items():
        if name not in images:
            others[extension_of(entry.path)] += 1
        elif name not in candidates:
            reason = f"another image of its sample is packed, {candidates[0]}"
            skipped.append(Skipped(_where(path, entry.path), reason))
    return fields[candidates[0]] if candidates else None


def _classes(
    names: list[str], numbers: list[int | None]
) -> tuple[NDArray[np.int32] | None, tuple[str, ...] | None]:
    """Return labels and class names, or none if there are fewer than two classes."""
    known = [number for number in numbers if number is not None]
    if known and len(known) < len(numbers):
        first = names[numbers.index(None)]
        raise ShardError(
            f"{first} has no .cls member, like {len(numbers) - len(known):,} of "
            f"{len(numbers):,} samples: add them, or pack without labels with --labels ignore"
        )
    if len(set(known)) < 2:
        return None, None
    classes, labels = np.unique(known, return_inverse=True)
    return labels.astype(np.int32), tuple(str(number) for number in classes)


def _class_number(file: BinaryIO, path: Path, entry: Entry) -> int:
    file.seek(entry.place)
    text = file.read(min(entry.size, _MAX_CLS_BYTES + 1)).strip()
    if len(text) > _MAX_CLS_BYTES or not text.isdigit():
        raise ShardError(
            f"{_where(path, entry.path)} holds {text[:20]!r}, and a class number (0, 1, ...) is "
            "needed: write one, or pack without labels with --labels ignore"
        )
    return int(text)


def _refuse_json_label(file: BinaryIO, path: Path, entry: Entry) -> None:
    """Raise ShardError if a sample has no `.cls` but a label in its JSON."""
    file.seek(entry.place)
    try:
        values = json.loads(file.read(min(entry.size, _MAX_JSON_BYTES)))
    except (ValueError, RecursionError):
        return
    names = [name for name in _JSON_LABELS if isinstance(values, dict) and name in values]
    if names:
        raise ShardError(
            f"{_where(path, entry.path)} holds a label ({names[0]}), but labels are read from .cls "
            "members only: write those, or pack without labels with --labels ignore"
        )


def _where(path: Path, name: str) -> str:
    return printable(f"{path.name}/{name}")
