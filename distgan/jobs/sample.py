"""`distgan sample`: a grid of images from a trained generator."""

from pathlib import Path

from distgan.errors import UserError
from distgan.generators import generate, load_generator, sample_latents
from distgan.reporting.images import save_grid, to_uint8


def sample(source: Path, *, num: int, seed: int, out: Path) -> Path:
    """Write a PNG grid of `num` images of the averaged generator in a run folder, checkpoint folder or generator file."""
    generator, spec = load_generator(source)
    images = generate(generator, sample_latents(num, spec, seed=seed))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        return save_grid(to_uint8(images), out)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror}; choose another place with --out") from None
