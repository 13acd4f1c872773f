"""How often the verdict is right on sets of images of which we know what is wrong with them.

    python -m tests.benchmarks.verdicts SHARDS ... [--features random] [--num 1000]
        [--probe SHARDS] [--run FOLDER] [--generator PATH=VERDICT] [--figures]

The sets are arranged from one half of each dataset, and compared with the other half. RIGHT says
beforehand which verdicts are right. The features are those of the random convolution, which data
without labels get, or with `--features probe` those of the dataset's own probe. Labels, or the hue
if there are none, tell which images are of one kind. A dataset after --probe is judged in the
features of its probe as well. Of a run after --run, three checkpoints join the sets of the dataset
with images of that shape; they are judged as if the run were no longer young. Prints a table of all
verdicts and a confusion matrix, in Markdown; --figures also prints the metrics.
"""

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from distgan.config.schema import Evaluation
from distgan.evaluation.evaluate import Result, evaluate
from distgan.evaluation.evaluator import choose_extractor
from distgan.evaluation.extractors import Extractor
from distgan.evaluation.reference import PreparedReference, RealImages, prepare_reference
from distgan.evaluation.verdict import assess
from distgan.networks.generator_file import checkpoint_folders, is_young, load_generator
from distgan.runtime.distributed import World
from distgan.runtime.randomness import normal
from shards.format.index import read_index
from shards.reader import ShardReader
from tests.benchmarks.common import command_line, machine

ALONE = World(0, 1)
RIGHT = {
    "other real images": ("healthy",),
    "half of the kinds": ("partial collapse",),
    "one kind": ("partial collapse",),
    "one image with noise": ("complete collapse",),
    "20 images with noise": ("partial collapse",),
    "copies": ("memorising",),
    "copies with noise": ("memorising",),
    "shifted copies": ("memorising",),
    "mirrored copies": ("memorising",),
    "grey noise": ("learning", "complete collapse"),
    "average image with noise": ("complete collapse",),
    "weak blur": ("healthy", "learning"),
    "blur": ("learning",),
    "strong blur": ("learning",),
}

STAGES = {
    "early checkpoint": (1 / 12, ("learning", "complete collapse")),
    "middle checkpoint": (1 / 3, ("learning",)),
    "late checkpoint": (1.0, ("learning", "healthy")),
}
"""Fractions of a run, and the right verdicts if it is healthy and has 24 kimg."""


@dataclass(frozen=True)
class Halves:
    """Two disjoint halves of a dataset: `fakes` are uint8 [n, C, H, W], `reals` are all others."""

    fakes: Tensor
    kinds: Tensor  # [n], integers
    num_kinds: int
    reals: RealImages


def split_dataset(reader: ShardReader, *, num: int, seed: int = 0) -> Halves:
    """Return the halves of a dataset, with at most 20 times `num` images in the first."""
    order = torch.randperm(reader.num_samples, generator=torch.Generator().manual_seed(seed))
    half = len(order) // 2
    ours, theirs = order[: min(half, 20 * num)].sort().values, order[half:].sort().values
    images = torch.from_numpy(reader.gather(ours.numpy()))
    if reader.index.class_names is None:
        kinds, num_kinds = kinds_by_hue(images), 10
    else:
        kinds = torch.from_numpy(reader.labels(ours.numpy())).long()
        num_kinds = len(reader.index.class_names)
    reals = RealImages(
        lambda ids: torch.from_numpy(reader.gather(theirs[ids].numpy())),
        len(theirs),
        f"{reader.index.fingerprint}/half {seed}",
    )
    return Halves(images, kinds, num_kinds, reals)


def kinds_by_hue(images: Tensor) -> Tensor:
    """Return ten kinds [n] of equal size, from the bluest to the reddest images [n, 3, H, W]."""
    hue = images[:, 0].float().mean((1, 2)) - images[:, 2].float().mean((1, 2))
    return hue.argsort().argsort() * 10 // len(images)


def arrange(halves: Halves, reference: Tensor, *, num: int) -> dict[str, Callable[[], Tensor]]:
    """Return the sets of RIGHT; `reference` are the images that fakes are compared with."""
    draw = torch.Generator().manual_seed(0)
    fakes, kinds = halves.fakes, halves.kinds

    def choose(mask: Tensor) -> Tensor:
        found = mask.nonzero().flatten()
        found = found[torch.randperm(len(found), generator=draw)]
        return fakes[found[torch.arange(num) % len(found)]]

    def noisy(images: Tensor, scale: float = 4) -> Tensor:
        noise = scale * torch.randn(images.shape, generator=draw)
        return (images + noise).round().clamp(0, 255).to(torch.uint8)

    def repeat(images: Tensor) -> Tensor:
        return images[torch.arange(num) % len(images)]

    others = choose(torch.ones(len(fakes), dtype=torch.bool))
    copies = repeat(reference)
    grey = torch.full_like(others, 128)
    average = reference.float().mean(0, keepdim=True)
    return {
        "other real images": lambda: others,
        "half of the kinds": lambda: choose(kinds < halves.num_kinds // 2),
        "one kind": lambda: choose(kinds == halves.num_kinds // 3),
        "one image with noise": lambda: noisy(repeat(others[:1])),
        "20 images with noise": lambda: noisy(repeat(others[:20])),
        "copies": lambda: copies,
        "copies with noise": lambda: noisy(copies, 8),
        "shifted copies": lambda: copies.roll((1, 1), (2, 3)),
        "mirrored copies": lambda: copies.flip(3),
        "grey noise": lambda: noisy(grey, 40),
        "average image with noise": lambda: noisy(repeat(average), 20),
        "weak blur": lambda: blur(others, 3),
        "blur": lambda: blur(others, 7),
        "strong blur": lambda: blur(others, 15),
    }


def blur(images: Tensor, width: int) -> Tensor:
    """Average over squares of `width` pixels of images of 32 pixels; twice the width for 64."""
    width = width * images.shape[3] // 32 // 2 * 2 + 1
    padded = functional.pad(images.float(), (width // 2,) * 4, mode="replicate")
    return functional.avg_pool2d(padded, width, 1).round().to(torch.uint8)


def generated(path: Path, *, num: int) -> Tensor:
    """Return images of a generator, of a run or of a checkpoint."""
    generator = load_generator(path)
    parts = [
        generator.images(normal((generator.spec.latent_dim,), part, seed=0, purpose="evaluation"))
        for part in torch.arange(num).split(250)
    ]
    return torch.cat(parts)


def stages(run: Path) -> dict[str, Path]:
    """Return the checkpoints of a run that are nearest to the fractions of STAGES."""
    folders = {float(path.name): path for path in checkpoint_folders(run)}
    return {
        name: folders[min(folders, key=lambda kimg: abs(kimg - fraction * max(folders)))]
        for name, (fraction, _) in STAGES.items()
    }


def judge(images: Tensor, prepared: PreparedReference, extractor: Extractor) -> Result:
    """Return what a verdict rests on."""
    return evaluate(
        lambda start, stop: images[start:stop], prepared, extractor, world=ALONE, wanted=()
    )


def choose(name: str, reader: ShardReader) -> Extractor:
    """Return the extractor `random` or `probe`."""
    return choose_extractor(Evaluation(extractor=name), reader, world=ALONE)[0]


def judge_dataset(
    shards: Path,
    *,
    num: int,
    features: str = "random",
    generators: Collection[str] = (),
    runs: Collection[Path] = (),
) -> dict[str, Result]:
    """Return what the verdicts rest on, for all sets of a dataset and for generators of it."""
    reader = ShardReader(read_index(shards))
    extractor = choose(features, reader)
    halves = split_dataset(reader, num=num)
    prepared = prepare_reference(halves.reals, extractor, world=ALONE, num_samples=num)
    num = prepared.protocol.num_fakes
    chosen = reference_images(halves.reals, prepared)
    sets = arrange(halves, chosen, num=num)
    found = {name: judge(make(), prepared, extractor) for name, make in sets.items()}
    chosen_paths = {path: Path(path) for path in generators}
    for each in (chosen_paths, *map(stages, runs)):
        for name, path in each.items():
            if load_generator(path).image_shape == reader.image_shape:
                found[name] = judge(generated(path, num=num), prepared, extractor)
    return found


def reference_images(reals: RealImages, prepared: PreparedReference) -> Tensor:
    """Return the images of a reference."""
    protocol = prepared.protocol
    order = torch.randperm(
        reals.num_images, generator=torch.Generator().manual_seed(protocol.split_seed)
    )
    return reals.images(order[: protocol.num_reference].sort().values)


def show_figures(results: dict[str, dict[str, Result]]) -> list[str]:
    """Return lines with the metrics of each set, and those of real images."""
    lines = []
    for dataset, each in results.items():
        first = next(iter(each.values()))
        names = list(first.values)
        lines += [f"{dataset}: " + ", ".join(names)]
        rows = {"reals": first.reals} | {name: result.values for name, result in each.items()}
        for name, values in rows.items():
            figures = " ".join(f"{values[metric]:7.2f}" for metric in names)
            lines.append(f"{name[-26:]:26s} {figures}")
    return lines


def show(found: dict[str, dict[str, str]], right: dict[str, tuple[str, ...]]) -> list[str]:
    """Return a table of all verdicts, wrong ones in bold, and the confusion matrix, in Markdown."""
    counts: Counter[tuple[str, str]] = Counter()
    lines = [
        "| images | right | " + " | ".join(found) + " |",
        "| --- | --- |" + " --- |" * len(found),
    ]
    for name, verdicts in right.items():
        cells = []
        for column in found.values():
            verdict = column.get(name, "")
            if verdict:
                counts[verdicts[0] if verdict not in verdicts else verdict, verdict] += 1
            cells.append(verdict if verdict in ("", *verdicts) else f"**{verdict}**")
        lines.append(f"| {name} | {' or '.join(verdicts)} | {' | '.join(cells)} |")
    names = sorted({name for pair in counts for name in pair})
    lines += [
        "",
        "| right \\ found | " + " | ".join(names) + " |",
        "| --- |" + " --- |" * len(names),
    ]
    for name in names:
        row = " | ".join(str(counts[name, other]) for other in names)
        lines.append(f"| {name} | {row} |")
    num_right = sum(count for (name, other), count in counts.items() if name == other)
    return [*lines, "", f"{num_right} of {counts.total()} are right."]


def main(arguments: list[str] | None = None) -> list[str]:
    """Print and return the tables."""
    parser = command_line(__doc__)
    parser.add_argument("shards", type=Path, nargs="+")
    parser.add_argument("--num", type=int, default=1000, help="images of each set")
    parser.add_argument("--features", default="random", help="random or probe")
    parser.add_argument("--probe", action="append", default=[], type=Path, metavar="SHARDS")
    parser.add_argument("--run", action="append", default=[], type=Path, metavar="FOLDER")
    parser.add_argument("--figures", action="store_true", help="show the metrics as well")
    parser.add_argument("--generator", action="append", default=[], metavar="PATH=VERDICT")
    options = parser.parse_args(arguments)
    generators = dict(word.rsplit("=", 1) for word in options.generator)
    torch.set_num_threads(1)
    columns = {path.name: (path, options.features) for path in options.shards}
    columns |= {f"{path.name}, probe": (path, "probe") for path in options.probe}
    results = {
        column: judge_dataset(
            path, num=options.num, features=features, generators=generators, runs=options.run
        )
        for column, (path, features) in columns.items()
    }
    found = {
        dataset: {
            name: assess(result, is_young=name in generators and is_young(Path(name))).name
            for name, result in each.items()
        }
        for dataset, each in results.items()
    }
    if options.figures:
        print(*show_figures(results), sep="\n")
    right = RIGHT | (
        {name: verdicts for name, (_, verdicts) in STAGES.items()} if options.run else {}
    )
    lines = [
        *show(found, right | {path: (verdict,) for path, verdict in generators.items()}),
        "",
        machine(),
    ]
    print("\n".join(lines))
    return lines


if __name__ == "__main__":
    main()
