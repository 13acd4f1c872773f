"""`distgan info`: the contents of a folder of packed shards."""

from collections import Counter

from distgan.text import pluralize
from shards.format.index import ShardIndex


def describe(index: ShardIndex) -> list[tuple[str, str]]:
    """Return (name, text) rows about a dataset, for the console."""
    channels, height, width = index.image_shape
    encoding = index.encoding if index.is_compressed else "raw"
    if index.quality is not None:
        encoding += f" of quality {index.quality}"
    depth = "" if index.bits == 8 else f" of {index.bits} bits"
    size = f"{index.num_bytes / 1e6:,.1f} MB"
    if index.is_compressed:
        size += f", {index.num_bytes / index.raw_num_bytes:.0%} of raw"
    rows = [("samples", f"{index.num_samples:,}")]
    if index.num_rejected:
        skipped = pluralize(index.num_rejected, "image")
        rows.append(("left out", f"{skipped}, listed in rejected.jsonl"))
    rows.append(
        ("images", f"{height}x{width}, {pluralize(channels, 'channel')}{depth}, {encoding}")
    )
    if index.class_names:
        rows.append(("classes", describe_classes(index)))
    rows.append(("shards", f"{len(index.shards)}, {size}"))
    rows.append(("fingerprint", index.fingerprint))
    return rows


def describe_other_files(extensions: Counter[str]) -> list[tuple[str, str]]:
    """Return a row about the files of a source that are no images, if there are any."""
    if not extensions:
        return []
    kinds = [f"{name or 'no extension'} ({num:,})" for name, num in extensions.most_common(8)]
    more = ", ..." if len(extensions) > len(kinds) else ""
    count = pluralize(extensions.total(), "other file")
    return [("not packed", f"{count}: {', '.join(kinds)}{more}")]


def describe_classes(index: ShardIndex) -> str:
    """Return the number of classes and, of up to 100, the names with their numbers of images."""
    names, counts = index.class_names or (), index.class_counts or ()
    if len(names) > 100:
        return str(len(names))
    classes = [f"{name} ({count:,})" for name, count in zip(names, counts, strict=True)]
    return f"{len(names)}: {', '.join(classes)}"
