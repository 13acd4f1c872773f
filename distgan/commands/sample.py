"""`distgan sample`: images, interpolations, videos and the training progress of generators.

latents of a seed -> [truncate] -> [interpolate | walk] -> generator -> PNG, GIF or MP4

Imports neither accelerate nor webdataset nor wandb, because sampling does not train.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import one_hot

from distgan.commands.output import writing_to
from distgan.errors import UserError
from distgan.images import grid_pixels, save_grid, to_image, write_image
from distgan.networks.base import ConditionalSpec
from distgan.networks.generator import Generator, check_label, check_labels
from distgan.networks.generator_file import checkpoint_folders, load_generator
from distgan.networks.latents import slerp, walk
from distgan.networks.mixture import class_number, join_class, split_class

GRID_FILE = Path("samples.png")
NUM_IMAGES = 64
NUM_IN_VIDEO = 16
NUM_COLUMNS = 8  # images in a row
NUM_KEYS, FRAMES_PER_LEG, FRAMES_PER_SEC = 4, 24, 20  # of a video
VIDEO_SUFFIXES = (".gif", ".mp4")
BATCH_SIZE = 256  # images in memory at once


@dataclass(frozen=True)
class Selection:
    """A choice of images to draw; `num` None means the default of the command."""

    num: int | None = None
    seed: int = 0
    truncation: float | None = None
    class_name: str | None = None
    labels: tuple[str, ...] = ()  # names or numbers of classes, one for each image

    def count(self, default: int) -> int:
        """Return how many images to draw; raises UserError if there are labels for others."""
        if self.labels and self.class_name is not None:
            raise UserError("--class and --labels exclude one another; choose one")
        if self.labels and self.num not in (None, len(self.labels)):
            raise UserError(f"--labels names {len(self.labels)} images, and --num {self.num}")
        return self.num or len(self.labels) or default

    def inputs(self, generator: Generator, num: int, *, first: int = 0) -> tuple[Tensor, ...]:
        """Return what the generator takes for `num` selected images, from number `first` on."""
        labels = None
        if self.labels:
            labels = label_numbers(generator, self.labels)[first : first + num]
        return generator.inputs(
            num,
            self.seed,
            first=first,
            truncation=self.truncation,
            class_name=self.class_name,
            labels=labels,
        )

    def walks(
        self, generator: Generator, shape: tuple[int, int], labels: Sequence[Tensor]
    ) -> Tensor:
        """Return latents [K, N, Z] of K stations on each of N walks.

        Those of a walk choose the class of its first, if the latents choose classes. Otherwise
        labels [K * N] are given if the generator takes any. Truncation moves latents toward the
        most typical one of their class.
        """
        num = shape[0] * shape[1]
        drawn = generator.latents(num, self.seed, class_name=self.class_name).unflatten(0, shape)
        class_values, others = split_class(drawn, generator.spec)
        latents = join_class(class_values[:1], others)
        if self.truncation is None:
            return latents
        cut = generator.truncate(latents.flatten(0, 1), self.truncation, *labels)
        return cut.unflatten(0, shape)

    def shows_all_classes(self, generator: Generator) -> bool:
        """Return whether nothing was chosen, so that the grid has one row per class."""
        is_free = self.num is None and self.class_name is None and not self.labels
        return is_free and isinstance(generator.spec, ConditionalSpec)


def label_numbers(generator: Generator, labels: Sequence[str]) -> Tensor:
    """Return the numbers of classes, int64 [N], for names or numbers; raises UserError."""
    if not isinstance(generator.spec, ConditionalSpec):
        raise UserError("--labels needs a conditional generator; leave it out, or see --class")
    names = generator.classes
    numbers = []
    for label in labels:
        is_number = label not in names and label.isdecimal()
        numbers.append(int(label) if is_number else class_number(generator.spec, label))
        check_label(numbers[-1], names)
    return torch.tensor(numbers)


def write_images(
    sources: Sequence[Path],
    selection: Selection,
    *,
    out: Path | None,
    files: Path | None,
    interpolates: bool,
    video_file: Path | None,
    shows_progress: bool,
) -> str:
    """Write a grid of images, or what one of the options asks for; returns what was written."""
    kinds = [bool(files), interpolates, bool(video_file), shows_progress]
    if sum(kinds) > 1:
        raise UserError(
            "--files, --interpolate, --video and --progress exclude one another; choose one"
        )
    if len(sources) > 1 and any(kinds):
        raise UserError("only a grid can show several generators; give one of them")
    if out is not None and (files or video_file):
        option = "--files" if files else "--video"
        raise UserError(f"--out names the file of a grid, and {option} writes none; choose one")
    out = out or GRID_FILE
    if out.suffix.lower() not in (".png", ""):
        raise UserError(f"--out {out}: a grid is a PNG file; give a name that ends in .png")
    if files:
        return f"wrote {sample_files(sources[0], files, selection)} images to {files}"
    if interpolates:
        return f"wrote {interpolate(sources[0], selection, out=out)}"
    if video_file:
        return f"wrote {video(sources[0], selection, out=video_file)}"
    if shows_progress:
        path, kimg = progress(sources[0], selection, out=out)
        return f"wrote {path}; columns: {', '.join(kimg)} kimg"
    return f"wrote {sample(sources, selection, out=out)}"


def sample(sources: Sequence[Path], selection: Selection, *, out: Path) -> Path:
    """Write a grid of 64 images of one generator, or one row of 8 for each of several."""
    generators = [load_generator(source) for source in sources]
    if len({generator.image_shape for generator in generators}) > 1:
        raise UserError("these generators make images of different shapes; sample them one by one")
    if len(generators) == 1 and selection.shows_all_classes(generators[0]):
        return sample_classes(generators[0], selection, out=out)
    num = selection.count(NUM_IMAGES if len(generators) == 1 else NUM_COLUMNS)
    images = torch.cat([each.images(*selection.inputs(each, num)) for each in generators])
    return write_grid(images, out, columns=None if len(generators) == 1 else num)


def sample_classes(generator: Generator, selection: Selection, *, out: Path) -> Path:
    """Write a grid with a row of 8 images for each class; a column has the same latent."""
    rows = []
    for name in generator.classes:
        latents, labels = replace(selection, class_name=name).inputs(generator, NUM_COLUMNS)
        rows.append(generator.images(latents, labels))
    return write_grid(torch.cat(rows), out, columns=NUM_COLUMNS)


def sample_files(source: Path, folder: Path, selection: Selection) -> int:
    """Write 64 images as files 000000.png, 000001.png, ...; return their number.

    Those of 2 or more than 4 channels, and colours of 16 bits, are npy files.
    """
    generator, count = load_generator(source), selection.count(NUM_IMAGES)
    with writing_to(folder, option="--files"):
        folder.mkdir(parents=True, exist_ok=True)
        for first in range(0, count, BATCH_SIZE):
            num = min(BATCH_SIZE, count - first)
            inputs = selection.inputs(generator, num, first=first)
            images = generator.images(*inputs, bits=generator.spec.bits)
            for number, image in enumerate(images, start=first):
                write_image(image, folder / f"{number:06d}")
    return count


def interpolate(source: Path, selection: Selection, *, out: Path) -> Path:
    """Write a grid of 64 images, in which each row of 8 leads from one image to another.

    The images of a row belong to the class of the first, if the generator has classes. With labels
    a row leads from class to class instead, and its latent stays the same.
    """
    generator = load_generator(source)
    if selection.labels and selection.class_name is not None:
        raise UserError("--class and --labels exclude one another; choose one")
    num = selection.num or NUM_IMAGES
    if num % NUM_COLUMNS:
        raise UserError(f"--interpolate makes rows of {NUM_COLUMNS}; use a multiple for --num")
    num_rows = num // NUM_COLUMNS
    if selection.labels:
        return interpolate_classes(generator, selection, num_rows=num_rows, out=out)
    labels = list(selection.inputs(generator, num_rows)[1:])
    ends = selection.walks(generator, (2, num_rows), [each.repeat(2) for each in labels])
    class_values, (starts, stops) = split_class(ends, generator.spec)
    between = slerp(starts, stops, torch.linspace(0, 1, NUM_COLUMNS))
    rows = join_class(class_values[0, :, None], between)
    labels = [each.repeat_interleave(NUM_COLUMNS) for each in labels]
    return write_grid(generator.images(rows.flatten(0, 1), *labels), out, columns=NUM_COLUMNS)


def interpolate_classes(
    generator: Generator, selection: Selection, *, num_rows: int, out: Path
) -> Path:
    """Write a grid in which each row of 8 leads one latent through the selected classes."""
    numbers = label_numbers(generator, selection.labels)
    if len(numbers) < 2:
        raise UserError("--interpolate between classes needs two or more in --labels")
    check_labels(numbers, len(numbers), generator.spec)
    corners = one_hot(numbers, len(generator.classes)).float()
    places = torch.linspace(0, len(corners) - 1, NUM_COLUMNS)
    before = places.long().clamp_max(len(corners) - 2)
    weights = torch.lerp(corners[before], corners[before + 1], (places - before)[:, None])
    free = replace(selection, labels=(), class_name=generator.classes[int(numbers[0])])
    latents = free.inputs(generator, num_rows)[0].repeat_interleave(NUM_COLUMNS, 0)
    images = generator.images(latents, weights.repeat(num_rows, 1))
    return write_grid(images, out, columns=NUM_COLUMNS)


def progress(run: Path, selection: Selection, *, out: Path) -> tuple[Path, tuple[str, ...]]:
    """Write a grid of 8 rows, each the same latent in all checkpoints of a run, oldest first.

    Returns the file, and the thousands of images seen (kimg) by each column.
    """
    folders = checkpoint_folders(run)
    if not folders:
        raise UserError(f"{run} holds no checkpoints; give a run folder, or leave --progress out")
    generators = map(load_generator, folders)
    num = selection.count(NUM_COLUMNS)
    columns = [generator.images(*selection.inputs(generator, num)) for generator in generators]
    images = torch.stack(columns, 1).flatten(0, 1)
    kimg = tuple(f"{float(folder.name):g}" for folder in folders)
    return write_grid(images, out, columns=len(folders)), kimg


def video(source: Path, selection: Selection, *, out: Path) -> Path:
    """Write a .gif or .mp4 of 16 images side by side, each on a closed walk through its class."""
    suffix = out.suffix.lower()
    if suffix not in VIDEO_SUFFIXES:
        raise UserError(f"--video {out}: name a file that ends in .gif or .mp4")
    generator, num = load_generator(source), selection.count(NUM_IN_VIDEO)
    labels = list(selection.inputs(generator, num)[1:])
    repeated = [each.repeat(NUM_KEYS) for each in labels]
    keys = selection.walks(generator, (NUM_KEYS, num), repeated)
    class_values, others = split_class(keys, generator.spec)
    latents = join_class(class_values[:1], walk(others, frames_per_leg=FRAMES_PER_LEG))
    labels = [each.repeat(len(latents)) for each in labels]
    images = generator.images(latents.flatten(0, 1), *labels)
    frames = [to_image(grid_pixels(side_by_side)) for side_by_side in images.split(num)]
    with writing_to(out, option="--video"):
        out.parent.mkdir(parents=True, exist_ok=True)
        write_gif(frames, out) if suffix == ".gif" else write_mp4(frames, out)
    return out


def write_gif(frames: list[Image.Image], out: Path) -> None:
    """Write an endless GIF. All frames use one palette, so that still parts do not flicker."""
    side = 64  # frames are reduced to this size to choose the palette, which is slow otherwise
    small = [
        frame.resize((side, side), Image.Resampling.NEAREST)
        for frame in frames[:: FRAMES_PER_LEG // 2]
    ]
    stacked = Image.new("RGB", (side, side * len(small)))
    for number, frame in enumerate(small):
        stacked.paste(frame, (0, number * side))
    palette = stacked.quantize(256, method=Image.Quantize.MEDIANCUT)
    first, *others = [
        frame.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG) for frame in frames
    ]
    duration_ms = 1000 // FRAMES_PER_SEC
    first.save(out, format="GIF", save_all=True, append_images=others, duration=duration_ms, loop=0)


def write_mp4(frames: list[Image.Image], out: Path) -> None:
    """Write an H.264 video that every player reads, with the encoder of imageio-ffmpeg."""
    try:
        import imageio_ffmpeg
    except ImportError:
        raise UserError(
            "an .mp4 needs an encoder; type: pip install 'distgan[video]', or name a .gif"
        ) from None
    width, height = (side - side % 2 for side in frames[0].size)  # the encoder needs even sides
    writer = imageio_ffmpeg.write_frames(
        str(out),
        (width, height),
        fps=FRAMES_PER_SEC,
        codec="libx264",
        macro_block_size=2,
        output_params=["-crf", "18", "-movflags", "+faststart"],
    )
    writer.send(None)
    try:
        for frame in frames:
            writer.send(frame.crop((0, 0, width, height)).tobytes())
    finally:
        writer.close()


def write_grid(images: Tensor, out: Path, *, columns: int | None) -> Path:
    """Write uint8 images [B, C, H, W] as a PNG grid; raises UserError."""
    with writing_to(out, option="--out"):
        out.parent.mkdir(parents=True, exist_ok=True)
        return save_grid(images, out, columns=columns)
