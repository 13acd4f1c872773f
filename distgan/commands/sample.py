"""`distgan sample`: images, interpolations, videos and the training progress of generators.

latents of a seed -> [truncate] -> [interpolate | walk] -> generator -> PNG, GIF or MP4

Imports neither accelerate nor webdataset nor wandb, because sampling does not train.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from distgan.commands.output import writing_to
from distgan.errors import UserError
from distgan.images import grid_pixels, save_grid, to_image
from distgan.networks.generator import Generator
from distgan.networks.generator_file import checkpoint_folders, load_generator
from distgan.networks.latents import slerp, walk
from distgan.networks.mixture import join_class, split_class

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

    def latents(self, generator: Generator, num: int, *, first: int = 0) -> Tensor:
        """Return `num` of the selected latents, beginning with number `first`."""
        return generator.latents(
            num,
            self.seed,
            first=first,
            truncation=self.truncation,
            class_name=self.class_name,
        )


def write_images(
    sources: Sequence[Path],
    selection: Selection,
    *,
    out: Path,
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
    num = selection.num or (NUM_IMAGES if len(generators) == 1 else NUM_COLUMNS)
    images = torch.cat([each.images(selection.latents(each, num)) for each in generators])
    return write_grid(images, out, columns=None if len(generators) == 1 else num)


def sample_files(source: Path, folder: Path, selection: Selection) -> int:
    """Write 64 images as PNG files 000000.png, 000001.png, ...; return their number."""
    generator, count = load_generator(source), selection.num or NUM_IMAGES
    with writing_to(folder, option="--files"):
        folder.mkdir(parents=True, exist_ok=True)
        for first in range(0, count, BATCH_SIZE):
            num = min(BATCH_SIZE, count - first)
            images = generator.images(selection.latents(generator, num, first=first))
            for number, image in enumerate(images, start=first):
                to_image(image).save(folder / f"{number:06d}.png")
    return count


def interpolate(source: Path, selection: Selection, *, out: Path) -> Path:
    """Write a grid of 64 images, in which each row of 8 leads from one image to another.

    The images of a row belong to the class of the first, if the generator has classes.
    """
    generator = load_generator(source)
    num_rows = max(1, (selection.num or NUM_IMAGES) // NUM_COLUMNS)
    latents = selection.latents(generator, 2 * num_rows).view(num_rows, 2, -1)
    class_values, others = split_class(latents, generator.spec)
    between = slerp(others[:, 0], others[:, 1], torch.linspace(0, 1, NUM_COLUMNS))
    rows = join_class(class_values[:, :1], between)
    return write_grid(generator.images(rows.flatten(0, 1)), out, columns=NUM_COLUMNS)


def progress(run: Path, selection: Selection, *, out: Path) -> tuple[Path, tuple[str, ...]]:
    """Write a grid of 8 rows, each the same latent in all checkpoints of a run, oldest first.

    Returns the file, and the thousands of images seen (kimg) by each column.
    """
    folders = checkpoint_folders(run)
    if not folders:
        raise UserError(f"{run} holds no checkpoints; give a run folder, or leave --progress out")
    generators = map(load_generator, folders)
    num = selection.num or NUM_COLUMNS
    columns = [generator.images(selection.latents(generator, num)) for generator in generators]
    images = torch.stack(columns, 1).flatten(0, 1)
    kimg = tuple(f"{float(folder.name):g}" for folder in folders)
    return write_grid(images, out, columns=len(folders)), kimg


def video(source: Path, selection: Selection, *, out: Path) -> Path:
    """Write a .gif or .mp4 of 16 images side by side, each on a closed walk through its class."""
    suffix = out.suffix.lower()
    if suffix not in VIDEO_SUFFIXES:
        raise UserError(f"--video {out}: name a file that ends in .gif or .mp4")
    generator, num = load_generator(source), selection.num or NUM_IN_VIDEO
    keys = selection.latents(generator, NUM_KEYS * num).view(NUM_KEYS, num, -1)
    class_values, others = split_class(keys, generator.spec)
    latents = join_class(class_values[:1], walk(others, frames_per_leg=FRAMES_PER_LEG))
    images = generator.images(latents.flatten(0, 1))
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
