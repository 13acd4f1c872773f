"""`distgan sample`: grids, single files, interpolations, videos and the progress of a trained generator.

latents of a seed -> [truncate] -> [interpolate | walk] -> generator -> PNG grid, PNG files, GIF or MP4

Needs neither accelerate nor webdataset nor wandb: a trained generator is used where nothing is trained.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from distgan.errors import UserError
from distgan.images import grid_pixels, save_grid, to_uint8
from distgan.networks.generator_file import checkpoint_folders, load_generator
from distgan.networks.latents import generate, sample_latents, slerp, truncate, walk
from distgan.networks.mixture import MixtureSpec, of_class

STEPS = 8  # images of a row from one latent to another
KEYS, FRAMES_PER_LEG, FRAMES_PER_SEC = 4, 24, 20  # of a walk
VIDEO_SUFFIXES = (".gif", ".mp4")


@dataclass(frozen=True)
class Choice:
    """Which images: how many, None for what suits; of which seed; how typical; of which class, None for all."""

    num: int | None = None
    seed: int = 0
    truncation: float | None = None
    class_name: str | None = None


class Sampler:
    """A trained generator with the latents of a choice."""

    def __init__(self, source: Path, choice: Choice) -> None:
        self.generator, self.spec = load_generator(source)
        self.choice = choice
        self.num_choosing = int(
            isinstance(self.spec, MixtureSpec)
        )  # first values of a latent, which choose its class

    def latents(self, num: int, *, first: int = 0) -> Tensor:
        """Latents [num, Z]; number i is the same however many are drawn."""
        drawn = sample_latents(num, self.spec, seed=self.choice.seed, first=first)
        if self.choice.class_name is not None:
            drawn = of_class(drawn, self.spec, self.choice.class_name)
        if self.choice.truncation is not None:
            drawn = self.like(drawn, truncate(self.free(drawn), self.choice.truncation))
        return drawn

    def free(self, latents: Tensor) -> Tensor:
        """What of latents [..., Z] may move without another class being chosen."""
        return latents[..., self.num_choosing :]

    def like(self, chosen: Tensor, free: Tensor) -> Tensor:
        """Latents [..., Z] of the classes that `chosen` [..., Z] choose, with `free` as the rest; shapes are expanded."""
        choosing = chosen[..., : self.num_choosing].expand(*free.shape[:-1], self.num_choosing)
        return torch.cat([choosing, free], -1)

    def images(self, latents: Tensor) -> Tensor:
        """uint8 [N, C, H, W]."""
        return to_uint8(generate(self.generator, latents))


def sample(sources: Sequence[Path], choice: Choice, *, out: Path) -> Path:
    """Write a grid of `num` images, 64 by default; of several generators, one a class perhaps, a row of 8 each."""
    samplers = [Sampler(source, choice) for source in sources]
    if len({(each.spec.image_size, each.spec.channels) for each in samplers}) > 1:
        raise UserError("these generators make images of different shapes; sample them one by one")
    count = choice.num or (64 if len(samplers) == 1 else STEPS)
    images = torch.cat([each.images(each.latents(count)) for each in samplers])
    return write_grid(images, out, columns=None if len(samplers) == 1 else count)


def sample_files(source: Path, folder: Path, choice: Choice) -> int:
    """Write `num` images, 64 by default, as single PNG files 000000.png and on; returns how many."""
    sampler, count = Sampler(source, choice), choice.num or 64
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for first in range(0, count, 256):
            images = sampler.images(sampler.latents(min(256, count - first), first=first))
            for number, image in enumerate(images, start=first):
                to_picture(image).save(folder / f"{number:06d}.png")
    except OSError as error:
        raise UserError(
            f"cannot write to {folder}: {error.strerror}; choose another place with --files"
        ) from None
    return count


def interpolate(source: Path, choice: Choice, *, out: Path) -> Path:
    """Write a grid of `num` images, 64 by default; each row of 8 goes over from one image to another."""
    sampler = Sampler(source, choice)
    rows = max(1, (choice.num or 64) // STEPS)
    starts, ends = sampler.latents(2 * rows).view(rows, 2, -1).unbind(1)
    between = slerp(sampler.free(starts), sampler.free(ends), torch.linspace(0, 1, STEPS))
    between = sampler.like(starts[:, None], between)
    return write_grid(sampler.images(between.flatten(0, 1)), out, columns=STEPS)


def progress(run: Path, choice: Choice, *, out: Path) -> tuple[Path, tuple[str, ...]]:
    """Write `num` latents, 8 by default, a row each, through all checkpoints of a run; the file, and kimg by column."""
    folders, columns = checkpoint_folders(run), []
    for folder in folders:
        sampler = Sampler(folder, choice)
        columns.append(sampler.images(sampler.latents(choice.num or STEPS)))
    images = torch.stack(columns, 1).flatten(0, 1)
    return write_grid(images, out, columns=len(folders)), tuple(
        f"{float(folder.name):g}" for folder in folders
    )


def video(source: Path, choice: Choice, *, out: Path) -> Path:
    """Write a closed walk of `num` images side by side, 16 by default, as .gif or .mp4."""
    if out.suffix.lower() not in VIDEO_SUFFIXES:
        raise UserError(f"--video {out}: name a file that ends in .gif or .mp4")
    write = write_gif if out.suffix.lower() == ".gif" else write_mp4
    sampler, count = Sampler(source, choice), choice.num or 16
    keys = sampler.latents(KEYS * count).view(KEYS, count, -1)
    path = sampler.like(keys[:1], walk(sampler.free(keys), frames_per_leg=FRAMES_PER_LEG))
    images = sampler.images(path.flatten(0, 1))
    frames = [to_picture(grid_pixels(of_frame)) for of_frame in images.split(count)]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write(frames, out)
    except OSError as error:
        raise UserError(
            f"cannot write {out}: {error.strerror or error}; choose another place with --video"
        ) from None
    return out


def write_gif(frames: list[Image.Image], out: Path) -> None:
    """An endless GIF. All frames share one palette, so that what stands still does not flicker."""
    side = 64  # of each frame that has a part in the palette, so that choosing it takes no time
    few = [
        frame.convert("RGB").resize((side, side), Image.Resampling.NEAREST)
        for frame in frames[:: FRAMES_PER_LEG // 2]
    ]
    together = Image.new("RGB", (side, side * len(few)))
    for place, frame in enumerate(few):
        together.paste(frame, (0, place * side))
    palette = together.quantize(256, method=Image.Quantize.MEDIANCUT)
    reduced = [
        frame.convert("RGB").quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)
        for frame in frames
    ]
    duration_ms = 1000 // FRAMES_PER_SEC
    reduced[0].save(
        out, format="GIF", save_all=True, append_images=reduced[1:], duration=duration_ms, loop=0
    )


def write_mp4(frames: list[Image.Image], out: Path) -> None:
    """H.264 that every player reads, by the encoder that imageio-ffmpeg brings along."""
    try:
        import imageio_ffmpeg
    except ImportError:
        raise UserError(
            "an .mp4 needs an encoder; type: pip install 'distgan[video]', or name a .gif"
        ) from None
    width, height = (side - side % 2 for side in frames[0].size)  # the encoder wants even sides
    writer = imageio_ffmpeg.write_frames(
        str(out), (width, height), fps=FRAMES_PER_SEC, codec="libx264", macro_block_size=2,
        output_params=["-crf", "18", "-movflags", "+faststart"],
    )  # fmt: skip
    writer.send(None)
    try:
        for frame in frames:
            writer.send(frame.convert("RGB").crop((0, 0, width, height)).tobytes())
    finally:
        writer.close()


def to_picture(image: Tensor) -> Image.Image:
    """uint8 [C, H, W] as a picture, grey for one channel."""
    pixels = image.permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def write_grid(images: Tensor, out: Path, *, columns: int | None) -> Path:
    """Write a PNG grid; raises UserError where that cannot be."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        return save_grid(images, out, columns=columns)
    except OSError as error:
        raise UserError(
            f"cannot write {out}: {error.strerror}; choose another place with --out"
        ) from None
