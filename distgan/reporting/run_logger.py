"""What rank zero tells of a run, to the run folder, the console and W&B alike; on other ranks every call does nothing."""

import json
import os
from contextlib import suppress
from typing import Any

from torch import Tensor

from distgan.config.flat import flat_values
from distgan.config.schema import Config
from distgan.errors import RunFailed
from distgan.evaluation.evaluate import Result
from distgan.evaluation.verdict import Verdict
from distgan.images import save_grid, save_losses_plot
from distgan.reporting import console
from distgan.reporting.wandb_sink import WandbSink, default_group, new_run_id
from distgan.run.files import read_rows
from distgan.run.folder import RunFolder, explained, write_atomically


class RunLogger:
    """The voice of a run; `folder` is None on every rank but zero."""

    def __init__(
        self,
        folder: RunFolder | None,
        *,
        name: str,
        config: Config,
        wandb_id: str | None,
        total_images: int,
        epoch_images: int,
        equilibrium: tuple[float, float],
    ) -> None:
        self.folder, self.name, self.config = folder, name, config
        self.wandb_id = wandb_id or new_run_id()
        self.total_images, self.epoch_images, self.equilibrium = (
            total_images,
            epoch_images,
            equilibrium,
        )
        self.console: console.TrainingConsole | None = None
        self.wandb: WandbSink | None = None
        self.last_verdict = "learning"  # what a run begins with

    def say(self, text: str, *, style: str = "") -> None:
        """One line to the console."""
        if self.folder is not None:
            (self.console or console).say(text, style=style)

    def already_done(self, *, images_seen: int) -> None:
        """There is nothing to train: say what would be, and let go of the folder."""
        if self.folder is None:
            return
        again = "longer: train.epochs or train.kimg; another: --run-dir DIR or train.seed=1"
        self.say(f"{self.folder.path} is done at {images_seen / 1000:g} kimg; {again}")
        self.folder.close()

    def start(
        self,
        table: list[tuple[str, Any]],
        *,
        config_toml: str,
        provenance: dict[str, Any],
        images_seen: int,
        notes: list[str],
    ) -> None:
        """Write the files of the start, show the table, open W&B."""
        if self.folder is None:
            return
        folder = self.folder
        with explained(folder.path):
            folder.truncate_after(images_seen)
            write_atomically(folder.path / "config.toml", config_toml)
            write_atomically(
                folder.path / "provenance.json", json.dumps(provenance, indent=1) + "\n"
            )
        folder.write_status("running", "training", images_seen=images_seen)
        console.show_table("distgan", table)
        self.console = console.TrainingConsole(total_images=self.total_images)
        self.console.start()
        if images_seen:
            what = f"resumed at {images_seen / 1000:g} kimg" + "".join(
                f"; {note}" for note in notes
            )
            self.event("resume", what, images_seen=images_seen)
        world = provenance["world"]
        self.wandb = WandbSink(
            self.config.log.wandb,
            project=self.config.log.project,
            group=self.config.log.group or default_group(os.environ),
            run_id=self.wandb_id,
            name=folder.path.name,
            folder=folder.path,
            config=flat_values(self.config) | {"world": world},
            tags=[self.name, f"{world['processes']}x{world['device']}"],
            complain=lambda text: self.event("warning", text, images_seen=images_seen),
        )

    def event(
        self, kind: str, sentence: str, *, images_seen: int, style: str = "", **figures: Any
    ) -> None:
        """Something happened: to events.jsonl and the console."""
        if self.folder is None:
            return
        self.folder.add_event(kind, sentence, images_seen=images_seen, **figures)
        self.say(sentence, style=style)

    def row(self, row: dict[str, Any]) -> None:
        """The metrics of a tick."""
        if self.folder is None or self.console is None or self.wandb is None:
            return
        self.folder.add_metrics(row)
        self.console.show(row)
        self.wandb.log(row)

    def evaluation(self, result: Result, *, is_best: bool, images_seen: int) -> None:
        """What an evaluation found, beside the values of real images."""
        if self.folder is None or self.console is None or self.wandb is None:
            return
        kimg = images_seen / 1000
        reals = {f"reals/{name}": value for name, value in result.reals.items()}
        self.folder.append("evaluations.jsonl", {"progress/images": images_seen} | result.to_dict())
        self.wandb.log({"progress/kimg": kimg} | result.values | reals)
        if is_best:
            self.wandb.summarize(
                {"best/kimg": kimg}
                | {f"best/{name}": value for name, value in result.values.items()}
            )
        shown = (
            "quality/frechet",
            "quality/fid",
            "quality/coverage",
            "quality/precision",
            "diversity/missing_classes",
        )
        figures = [
            f"{n.rpartition('/')[2].replace('_', ' ')} {result.values[n]:.3g}"
            for n in shown
            if n in result.values
        ]
        self.say(f"{kimg:,.1f} kimg  quality: {', '.join(figures)}{'  (best)' if is_best else ''}")

    def verdict(self, verdict: Verdict, *, images_seen: int) -> None:
        """Tell everyone when what the run looks like has changed."""
        if self.folder is None or verdict.name == self.last_verdict:
            return
        self.last_verdict = verdict.name
        self.event(
            "verdict",
            str(verdict),
            images_seen=images_seen,
            verdict=verdict.name,
            style="bold red" if verdict.is_trouble else "green",
        )
        self.folder.write_status(
            "running", "training", images_seen=images_seen, verdict=str(verdict)
        )
        if self.wandb is not None and verdict.is_trouble:
            self.wandb.alert(
                verdict.name, f"{self.folder.path.name} at {images_seen / 1000:g} kimg: {verdict}"
            )

    def time_table(self, looking: dict[str, float], *, train_seconds: float) -> None:
        """How much of the time went into looking rather than training."""
        if self.folder is None:
            return
        parts = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in looking.items())
        share = sum(looking.values()) / max(train_seconds, 1e-9)
        self.say(f"{train_seconds:,.1f} s in all, of them {share:.1%} for looking: {parts}")

    def samples(self, fakes: Tensor, reals: Tensor | None, *, images_seen: int) -> None:
        """Grids of uint8 images [B, C, H, W] as files and to W&B."""
        if self.folder is None or self.wandb is None:
            return
        kimg = images_seen / 1000
        with explained(self.folder.path):
            path = save_grid(fakes, self.folder.samples / f"{kimg:010.3f}.png")
            pictures = {"samples/fakes": (path, f"{kimg:g} kimg, moving average, fixed latents")}
            if reals is not None:
                pictures["samples/reals"] = (
                    save_grid(reals, self.folder.samples / "reals.png"),
                    "real images",
                )
        self.wandb.log({"progress/kimg": kimg}, pictures)

    def close(self, state: str, reason: str, *, images_seen: int) -> None:
        """Write the outcome, plot the losses, then wait for W&B: a job that is being preempted may not live to see it end."""
        if self.folder is None:
            return
        try:
            self.folder.add_event(state, reason, images_seen=images_seen)
            self.folder.write_status(
                state, reason, images_seen=images_seen, verdict=self.last_verdict
            )
            self.plot()
        except RunFailed as error:
            self.say(f"the outcome is not recorded: {error}")
        self.write_report(state, images_seen=images_seen)
        if self.console is not None:
            self.console.close()
        if self.wandb is not None:
            self.wandb.summarize({"state": state, "verdict": self.last_verdict})
            if state in ("done", "collapsed"):
                self.wandb.keep_generator(self.folder.path, metadata={"images_seen": images_seen})
            self.wandb.close(has_failed=state == "failed")
        folder, self.folder = self.folder, None
        folder.close()
        console.say(f"{state}: {reason}; {images_seen / 1000:g} kimg; {folder.path}")

    def plot(self) -> None:
        """losses.png from the rows so far."""
        assert self.folder is not None, "only rank zero plots"
        rows, path = read_rows(self.folder.path / "metrics.jsonl"), self.folder.path / "losses.png"
        with explained(self.folder.path):
            save_losses_plot(
                rows, path, epoch_images=self.epoch_images, equilibrium=self.equilibrium
            )

    def write_report(self, state: str, *, images_seen: int) -> None:
        """report.html; a page that cannot be written is a warning and never ends a training."""
        if self.folder is None or not self.config.log.report:
            return
        from distgan.reporting.page import write_report

        try:
            write_report(self.folder.path, has_time=state in ("done", "collapsed"))
        except Exception as error:  # whatever a library or a disk may come up with
            why = (str(error).strip() or type(error).__name__).splitlines()[0]
            with suppress(RunFailed):  # where there is no room for the warning either
                self.event(
                    "warning", f"report.html was not written: {why}", images_seen=images_seen
                )
