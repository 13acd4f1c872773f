"""`distgan evaluate`: compare generators, or folders of generated images, with packed shards."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from distgan.config.schema import Data, Evaluation, Thresholds
from distgan.data import open_dataset
from distgan.errors import UserError
from distgan.evaluation.evaluate import Fakes, Result, check_names, evaluate
from distgan.evaluation.evaluator import choose_extractor, describe_absent, real_images
from distgan.evaluation.reference import prepare_reference
from distgan.evaluation.verdict import Verdict, assess
from distgan.labels import Labels, class_labels
from distgan.networks.base import ConditionalSpec, GeneratorSpec
from distgan.networks.conditioning import spread_labels
from distgan.networks.generator_file import (
    dataset_of,
    is_young,
    load_generator,
    was_improving,
)
from distgan.reporting.classes import class_lines
from distgan.reporting.console import say, show_columns, show_warning
from distgan.reporting.metrics import explain_distance
from distgan.run.clusters import FILE as CLUSTERS_FILE
from distgan.run.clusters import read_clusters
from distgan.run.files import RunData, data_of, find_runs, read_toml, run_of
from distgan.run.folder import check_writable, write_json
from distgan.runtime.distributed import World
from distgan.runtime.randomness import normal
from shards.format.index import INDEX_FILE, read_index
from shards.images import EXTENSIONS, BadImage, decode_image
from shards.order.permutation import order_key, sample_ids
from shards.reader import ShardReader
from shards.sources.registry import open_source

UNLIMITED = 2**62
Shape = tuple[int, int, int]  # channels, height, width


@dataclass(frozen=True)
class Score:
    """The metrics and the verdict of one input."""

    name: str
    result: Result
    verdict: Verdict


@dataclass(frozen=True)
class Input:
    """Generated images by number, their origin (`ema` or `images`), and their count.

    `is_young` if the run of their generator had not trained long enough for a verdict,
    `was_improving` if it was still getting better. `spec` is that of a conditional generator.
    """

    fakes: Fakes
    weights: str
    count: int
    is_young: bool = False
    was_improving: bool = False
    spec: GeneratorSpec | None = None


def evaluate_inputs(
    inputs: list[Path],
    data: RunData,
    *,
    settings: Evaluation,
    seed: int,
    num_reference: int | None = None,
    json_file: Path | None = None,
) -> list[Score]:
    """Evaluate runs, checkpoints, generator files, image folders or shards against `data`.

    All inputs are evaluated with as many images as the smallest has, so that their metrics can be
    compared. Without `num_reference` the reference is at most half of the real images, and there
    are as many fakes; published FIDs use 50,000 of each. Raises UserError.
    """
    if json_file is not None:
        check_writable(json_file)
    check_names(settings.metrics or ())
    world = World(0, 1)
    _, reader = open_dataset(Data(shards=data.shards, classes=data.classes))
    extractor, _ = choose_extractor(settings, reader, world=world)
    opened = [open_input(path, reader.image_shape, seed=seed) for path in inputs]
    num_samples = min([settings.num_samples, *(each.count for each in opened)])
    labels = labels_of_classes(inputs, opened, reader)
    num_reals = max(num_samples, num_reference or 0)
    reference = prepare_reference(
        real_images(reader, data.classes, num_samples=num_reals, labels=labels),
        extractor,
        world=world,
        num_samples=num_samples,
        num_reference=num_reference,
    )
    scores = []
    for path, each in zip(inputs, opened, strict=True):
        result = evaluate(
            each.fakes,
            reference,
            extractor,
            world=world,
            seed=seed,
            weights=each.weights,
            wanted=settings.metrics,
            fake_labels=labels_asked_for(each, reference.protocol.num_fakes, seed=seed),
        )
        improves = each.was_improving and not is_from_other_data(path, reader, data)
        thresholds = thresholds_of(path)
        verdict = assess(result, thresholds, is_young=each.is_young, was_improving=improves)
        scores.append(Score(str(path), result.only(settings.metrics), verdict))
    if json_file is not None:
        write_json(json_file, [to_row(score) for score in scores])
    return scores


def is_from_other_data(path: Path, reader: ShardReader, data: RunData) -> bool:
    """Return whether an input is of a run that was compared with other images than these.

    Whether it became more like those says nothing about these.
    """
    if dataset_of(path) not in (None, reader.index.fingerprint):
        return True
    return run_of(path) is not None and data_of([path]).classes != data.classes


def thresholds_of(path: Path) -> Thresholds:
    """Return the thresholds of verdicts in the run to which an input belongs, or the usual ones."""
    run = run_of(path)
    tree = {} if run is None else read_toml(run / "config.toml")
    try:
        return Thresholds.model_validate(tree.get("collapse", {}).get("thresholds", {}))
    except (AttributeError, ValueError):  # settings of another version
        return Thresholds()


def labels_of_classes(paths: list[Path], inputs: list[Input], reader: ShardReader) -> Labels | None:
    """Return the labels of the real images, if all conditional generators have the same classes.

    Clusters are those stored with the run. None if there is no such generator, if generators have
    different classes, or if the real images do not have them.
    """
    found = {
        each.spec.classes: path
        for path, each in zip(paths, inputs, strict=True)
        if isinstance(each.spec, ConditionalSpec)
    }
    if len(found) != 1:
        return None
    ((wanted, path),) = found.items()
    if set(wanted) <= set(reader.index.class_names or ()):
        return numbered_as(wanted, class_labels(reader, wanted))
    for folder in (path, *path.resolve().parents[:2]):
        clusters = read_clusters(folder / CLUSTERS_FILE)
        if clusters is not None and clusters.are_of(reader):
            labels = clusters.as_labels()
            return labels if labels.names == wanted else None
    return None


def numbered_as(names: tuple[str, ...], labels: Labels) -> Labels | None:
    """Return labels whose classes have the numbers of these names, None if one has no images.

    Two packed datasets may have the same classes in different orders.
    """
    if set(names) != set(labels.names):
        return None
    numbers = np.array([names.index(name) for name in labels.names] + [-1])  # -1 remains -1
    counts = dict(zip(labels.names, labels.counts, strict=True))
    return replace(
        labels,
        names=names,
        counts=tuple(counts[name] for name in names),
        of_samples=lambda ids: numbers[labels.of_samples(ids)],
    )


def labels_asked_for(each: Input, num: int, *, seed: int) -> Tensor | None:
    """Return the labels of the fakes of a conditional generator, with the shares of training."""
    if not isinstance(each.spec, ConditionalSpec):
        return None
    return spread_labels(torch.arange(num), each.spec.shares, seed=seed)


def to_row(score: Score) -> dict[str, object]:
    """Return a score as plain values for JSON."""
    return {"input": score.name, "verdict": str(score.verdict)} | score.result.to_dict()


def format_value(value: float | None) -> str:
    """Return a metric as text, empty if it was not measured."""
    return "" if value is None else f"{value:.4g}"


def show_scores(scores: list[Score], *, wanted: Sequence[str] = ()) -> None:
    """Print all inputs' metrics and those of real images, the verdicts and the protocol.

    A warning names the `wanted` metrics that none of them has.
    """
    reals = {name: value for score in scores for name, value in score.result.reals.items()}
    rows = []
    for name in dict.fromkeys(name for score in scores for name in score.result.values):
        values = [format_value(score.result.values.get(name)) for score in scores]
        rows.append([name, *values, format_value(reals.get(name))])
    names = [Path(score.name).name for score in scores]
    if len(set(names)) < len(names):
        names = [score.name for score in scores]
    show_columns(["metric", *names, "real images"], rows)
    measured = {name for score in scores for name in score.result.values}
    for warning in describe_absent(wanted, measured, "--extractor inception"):
        show_warning(warning)
    for score in scores:
        if score.result.by_class:
            say(f"classes of {score.name}:")
            show_columns(*class_lines(score.result.by_class))
    if explanation := explain_distance(scores[0].result.values, reals):
        say(explanation)
    for score in scores:
        style = "bold red" if score.verdict.is_trouble else "bold green"
        say(f"{score.name}: {score.verdict}", style=style)
        say(score.verdict.explanation)
    say(scores[0].result.protocol.line())


def open_input(path: Path, image_shape: Shape, *, seed: int) -> Input:
    """Return the images of shards, of a folder or of a generator; raises UserError."""
    if (path / INDEX_FILE).exists():
        return open_packed(path, image_shape)
    if path.is_dir() and holds_images(path):
        if runs := find_runs(path):
            raise UserError(f"{path} is a folder of runs; name those to evaluate, as in {runs[0]}")
        return open_folder(path, image_shape)
    return open_generator(path, image_shape, seed=seed)


def open_packed(path: Path, image_shape: Shape) -> Input:
    """Return the images of packed shards; raises UserError if they have another shape."""
    reader = ShardReader(read_index(path))
    if reader.image_shape != image_shape:
        raise UserError(
            f"images in {path} are {list(reader.image_shape)}, those of the data "
            f"{list(image_shape)}; pack one of them again"
        )
    return Input(
        lambda start, stop: torch.from_numpy(reader.gather_8_bits(np.arange(start, stop))),
        "images",
        reader.num_samples,
    )


def open_folder(path: Path, image_shape: Shape) -> Input:
    """Return the image files of a folder, cropped and resized to the shape of the data.

    They come in a fixed random order, since the first in the order of paths are of few classes.
    """
    source = open_source(path, with_labels=False)
    channels, height, width = image_shape
    key = order_key(source.digest, 0)
    order = sample_ids(np.arange(len(source)), num_samples=len(source), key=key).tolist()

    def read(number: int) -> np.ndarray:
        try:
            return decode_image(source.read(number), size=(height, width), channels=channels)
        except BadImage as error:
            name = source.names[number]
            raise UserError(f"{path}: broken image {name} ({error}); remove it") from None

    def read_all(start: int, stop: int) -> Tensor:
        return torch.from_numpy(np.stack([read(number) for number in order[start:stop]]))

    return Input(read_all, "images", len(source))


def open_generator(path: Path, image_shape: Shape, *, seed: int) -> Input:
    """Return the images of a generator; raises UserError if they have another shape."""
    generator = load_generator(path)
    if generator.image_shape != image_shape:
        raise UserError(
            f"{path} generates images {list(generator.image_shape)}, those of the data are "
            f"{list(image_shape)}; give the data it was trained on"
        )

    def generate(start: int, stop: int) -> Tensor:
        numbers, latent_shape = torch.arange(start, stop), (generator.spec.latent_dim,)
        latents = normal(latent_shape, numbers, seed=seed, purpose="evaluation")
        if isinstance(generator.spec, ConditionalSpec):
            labels = spread_labels(numbers, generator.spec.shares, seed=seed)
            return generator.images(latents, labels)
        return generator.images(latents)

    return Input(generate, "ema", UNLIMITED, is_young(path), was_improving(path), generator.spec)


def holds_images(folder: Path) -> bool:
    """Return whether a folder contains images and is neither a run nor a checkpoint."""
    if any((folder / name).exists() for name in ("generator.json", "state.json", "checkpoints")):
        return False
    return any(path.suffix.lower() in (*EXTENSIONS, ".npy") for path in folder.rglob("*"))
