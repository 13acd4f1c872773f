"""`distgan evaluate`: score generators, or anyone's generated images, against packed shards."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from distgan.config.schema import Data, Evaluation
from distgan.data import open_dataset
from distgan.errors import UserError
from distgan.evaluation.evaluate import Fakes, Result, evaluate
from distgan.evaluation.evaluator import choose_extractor, real_images
from distgan.evaluation.reference import prepare_reference
from distgan.evaluation.verdict import Verdict, judge
from distgan.networks.generator_file import load_generator
from distgan.run.folder import check_writable, write_json
from distgan.runtime.distributed import World
from distgan.runtime.randomness import normal
from shards.format.index import INDEX_FILE, read_index
from shards.images import EXTENSIONS, BadImage, decode_image
from shards.reader import ShardReader
from shards.sources.open import open_source


@dataclass(frozen=True)
class Scored:
    """One input with what was found."""

    name: str
    result: Result
    verdict: Verdict


def evaluate_inputs(
    inputs: list[Path],
    data: str,
    *,
    settings: Evaluation,
    seed: int,
    num_reference: int | None = None,
    json_file: Path | None = None,
) -> list[Scored]:
    """Score runs, checkpoints, generator files, folders of images or packed shards against the shards in `data`.

    All are scored by as many images as the smallest of them has, so that they can be compared. Without `num_reference`
    no more than half the reals are the reference, and as many fakes are drawn; published FIDs take 50,000 of both.
    """
    if json_file is not None:
        check_writable(json_file)
    world = World(0, 1)
    _, reader = open_dataset(Data(shards=data))
    extractor, _ = choose_extractor(settings, reader, world=world)
    opened = [open_fakes(path, reader.image_shape, seed=seed) for path in inputs]
    num = min([settings.num_samples, *(count for _, _, count in opened)])
    prepared = prepare_reference(
        real_images(reader, None, num_samples=max(num, num_reference or 0)),
        extractor,
        world=world,
        num_samples=num,
        num_reference=num_reference,
    )
    scored = []
    for path, (fakes, weights, _) in zip(inputs, opened, strict=True):
        result = evaluate(
            fakes,
            prepared,
            extractor,
            world=world,
            seed=seed,
            weights=weights,
            wanted=settings.metrics,
        )
        scored.append(Scored(str(path), result, judge(result)))
    if json_file is not None:
        rows = [
            {"input": each.name, "verdict": str(each.verdict)} | each.result.to_dict()
            for each in scored
        ]
        write_json(json_file, rows)
    return scored


def open_fakes(
    path: Path, image_shape: tuple[int, int, int], *, seed: int
) -> tuple[Fakes, str, int]:
    """(fakes by number, what they come from, how many there are) of one input; raises UserError."""
    if (path / INDEX_FILE).exists():
        shards = ShardReader(read_index(path))
        if shards.image_shape != image_shape:
            raise UserError(
                f"{path} holds images {list(shards.image_shape)}, the data {list(image_shape)}; pack again"
            )
        return (
            lambda a, b: torch.from_numpy(shards.gather(np.arange(a, b))),
            "images",
            shards.num_samples,
        )
    if path.is_dir() and holds_images(path):
        source = open_source(path)
        channels, size, _ = image_shape

        def read(start: int, stop: int) -> Tensor:
            images = []
            for number in range(start, stop):
                try:
                    images.append(decode_image(source.read(number), size=size, channels=channels))
                except BadImage as error:
                    raise UserError(
                        f"{path}: broken image {source.names[number]} ({error}); remove it"
                    ) from None
            return torch.from_numpy(np.stack(images))

        return read, "images", len(source)
    generator = load_generator(path)
    if generator.image_shape != image_shape:
        raise UserError(
            f"{path} makes images {list(generator.image_shape)}, the data are {list(image_shape)}; give the data it learned"
        )

    def make(start: int, stop: int) -> Tensor:
        latents = normal(
            (generator.spec.latent_dim,),
            torch.arange(start, stop),
            seed=seed,
            purpose="evaluation",
        )
        return generator.images(latents)

    return make, "ema", 2**62


def holds_images(folder: Path) -> bool:
    """Whether a folder is one of images rather than a run or a checkpoint."""
    if any((folder / name).exists() for name in ("generator.json", "state.json", "checkpoints")):
        return False
    return any(path.suffix.lower() in EXTENSIONS for path in folder.rglob("*"))
