"""The generator and the real images in the folder of a finished run."""

from distgan.evaluation.tracker import VerdictTracker
from distgan.gan import GAN
from distgan.images import is_whole_image, save_grid
from distgan.networks.generator_file import save_generator
from distgan.reporting.run_logger import REALS_FILE
from distgan.run.checkpointer import facts_for_verdicts
from distgan.run.folder import RunFolder, explained
from distgan.run.reporter import first_reals
from distgan.run.sample_grid import grid_columns
from distgan.run.session import Session


def write_generator(
    folder: RunFolder, session: Session, *, gan: GAN, tracker: VerdictTracker, images_seen: int
) -> None:
    """Write the averaged generator to the run folder."""
    facts = {
        "images_seen": images_seen,
        **facts_for_verdicts(tracker),
        "dataset": session.fingerprint,
        "weights": "moving average",
    }
    with explained(folder.path):
        save_generator(gan.ema.generator, gan.spec, folder.path, facts=facts)


def restore_reals(folder: RunFolder, session: Session) -> None:
    """Write the grid of real images again if it is damaged."""
    path = folder.samples / REALS_FILE
    if not is_whole_image(path):
        with explained(folder.path):
            images = first_reals(session.reader, session.labels)
            save_grid(images, path, columns=grid_columns(session.labels))
