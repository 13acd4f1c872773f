"""Everything that rank zero reports of a run: to the run folder, the console and the sinks."""

import json
import os
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from typing import Any

from torch import Tensor

from distgan.config.flat import flat_values, to_toml
from distgan.config.schema import Config
from distgan.errors import RunFailed
from distgan.evaluation.evaluate import Result
from distgan.evaluation.verdict import Verdict
from distgan.images import save_grid, save_losses_plot
from distgan.losses.adversarial import equilibrium
from distgan.reporting import console
from distgan.reporting.sinks import Sink
from distgan.reporting.tensorboard_sink import TensorBoardSink
from distgan.reporting.wandb_sink import WandbSink, default_group, new_run_id
from distgan.run.files import read_rows, read_status
from distgan.run.folder import RunFolder, explained
from shards.files import write_atomic

SUMMARY_METRICS = (
    "quality/frechet",
    "quality/fid",
    "quality/coverage",
    "quality/precision",
    "diversity/missing_classes",
)


def on_rank_zero(method: Callable[..., None]) -> Callable[..., None]:
    """Make a method of RunLogger do nothing on ranks without a run folder."""

    @wraps(method)
    def guarded(self: "RunLogger", *args: Any, **kwargs: Any) -> None:
        if self.folder is not None:
            method(self, *args, **kwargs)

    return guarded


class RunLogger:
    """The log of one run. `folder` is None on every rank but zero, and there nothing is logged."""

    def __init__(
        self,
        folder: RunFolder | None,
        *,
        name: str,
        config: Config,
        wandb_id: str | None,
        total_images: int,
        epoch_images: int,
    ) -> None:
        self.folder, self.name, self.config = folder, name, config
        self.wandb_id = wandb_id or new_run_id()
        self.total_images, self.epoch_images = total_images, epoch_images
        self.console: console.TrainingConsole | None = None
        self.sinks: list[Sink] = []
        self.last_verdict = "learning"  # the verdict on a new run

    # -------------------------------------------------------------------------------------- start

    @on_rank_zero
    def start(
        self,
        table: list[tuple[str, Any]],
        *,
        provenance: dict[str, Any],
        images_seen: int,
        notes: list[str],
    ) -> None:
        """Write the files that describe the run, show the table and open the sinks.

        Rows of steps that will be trained again are dropped.
        """
        folder = self.folder
        assert folder is not None
        with explained(folder.path):
            folder.truncate_after(images_seen)
            write_atomic(folder.path / "config.toml", to_toml(self.config))
            write_atomic(folder.path / "provenance.json", json.dumps(provenance, indent=1) + "\n")
        folder.write_status("running", "training", images_seen=images_seen)
        console.show_table("distgan", table)
        self.console = console.TrainingConsole(total_images=self.total_images)
        self.console.start()
        if images_seen:
            resumed = "; ".join([f"resumed at {images_seen / 1000:g} kimg", *notes])
            self.event("resume", resumed, images_seen=images_seen)
        self.sinks = self.open_sinks(provenance["world"], images_seen=images_seen)

    def open_sinks(self, world: dict[str, Any], *, images_seen: int) -> list[Sink]:
        """Return W&B and, if it is asked for, TensorBoard."""
        assert self.folder is not None
        folder, log = self.folder.path, self.config.log
        config = flat_values(self.config) | {"world": world}

        def warn(text: str) -> None:
            self.event("warning", text, images_seen=images_seen)

        wandb = WandbSink(
            log.wandb,
            project=log.project,
            group=log.group or default_group(os.environ),
            run_id=self.wandb_id,
            name=folder.name,
            folder=folder,
            config=config,
            tags=[self.name, f"{world['processes']}x{world['device']}"],
            warn=warn,
        )
        if not log.tensorboard:
            return [wandb]
        # Before W&B, for which the end of an interrupted run may have to wait too long.
        return [TensorBoardSink(folder, config=config, images_seen=images_seen, warn=warn), wandb]

    @on_rank_zero
    def already_done(self, *, images_seen: int) -> None:
        """Say that nothing is left to train, and release the run folder."""
        assert self.folder is not None
        again = "longer: train.epochs or train.kimg; another: --run-dir DIR or train.seed=1"
        self.say(f"{self.folder.path} is done at {images_seen / 1000:g} kimg; {again}")
        self.folder.close()

    # ------------------------------------------------------------------------------------ running

    @on_rank_zero
    def say(self, text: str, *, style: str = "") -> None:
        """Print one line to the console."""
        (self.console or console).say(text, style=style)

    @on_rank_zero
    def event(
        self, kind: str, sentence: str, *, images_seen: int, style: str = "", **figures: Any
    ) -> None:
        """Record in events.jsonl that something happened, and print it."""
        assert self.folder is not None
        self.folder.add_event(kind, sentence, images_seen=images_seen, **figures)
        self.say(sentence, style=style)

    @on_rank_zero
    def metrics(self, row: dict[str, Any]) -> None:
        """Log one row of training metrics."""
        assert self.folder is not None and self.console is not None
        self.folder.add_metrics(row)
        self.console.show(row)
        for sink in self.sinks:
            sink.log(row)

    @on_rank_zero
    def evaluation(self, result: Result, *, is_best: bool, images_seen: int) -> None:
        """Log the result of an evaluation, beside the same metrics of real images."""
        assert self.folder is not None
        kimg, values = images_seen / 1000, result.values
        self.folder.append("evaluations.jsonl", {"progress/images": images_seen} | result.to_dict())
        reals = {f"reals/{name}": value for name, value in result.reals.items()}
        for sink in self.sinks:
            sink.log({"progress/kimg": kimg} | values | reals)
        if is_best:
            best = {f"best/{name}": value for name, value in values.items()}
            for sink in self.sinks:
                sink.summarize({"best/kimg": kimg} | best)
        figures = [
            f"{name.rpartition('/')[2].replace('_', ' ')} {values[name]:.3g}"
            for name in SUMMARY_METRICS
            if name in values
        ]
        best_mark = "  (best)" if is_best else ""
        self.say(f"{kimg:,.1f} kimg  quality: {', '.join(figures)}{best_mark}")

    @on_rank_zero
    def verdict(self, verdict: Verdict, *, images_seen: int) -> None:
        """Log a verdict if it differs from the last one, and send an alert if it is trouble."""
        if verdict.name == self.last_verdict:
            return
        assert self.folder is not None
        self.last_verdict = verdict.name
        style = "bold red" if verdict.is_trouble else "green"
        self.event(
            "verdict", str(verdict), images_seen=images_seen, verdict=verdict.name, style=style
        )
        self.folder.write_status(
            "running", "training", images_seen=images_seen, verdict=str(verdict)
        )
        text = f"{self.folder.path.name} at {images_seen / 1000:g} kimg: {verdict}"
        for sink in self.sinks if verdict.is_trouble else ():
            sink.alert(verdict.name, text)

    @on_rank_zero
    def samples(self, fakes: Tensor, reals: Tensor | None, *, images_seen: int) -> None:
        """Save grids of uint8 images [B, C, H, W], and log them."""
        assert self.folder is not None
        kimg, folder = images_seen / 1000, self.folder.samples
        with explained(self.folder.path):
            path = save_grid(fakes, folder / f"{kimg:010.3f}.png")
            pictures = {"samples/fakes": (path, f"{kimg:g} kimg, moving average, fixed latents")}
            if reals is not None:
                pictures["samples/reals"] = (save_grid(reals, folder / "reals.png"), "real images")
        for sink in self.sinks:
            sink.log({"progress/kimg": kimg}, pictures)

    # ---------------------------------------------------------------------------------------- end

    @on_rank_zero
    def time_table(self, maintenance_sec: dict[str, float], *, total_sec: float) -> None:
        """Print how the time was divided between training and everything else."""
        training = total_sec - sum(maintenance_sec.values())
        parts = {"training": training} | maintenance_sec
        listed = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in parts.items())
        self.say(f"{total_sec:,.1f} s in total: {listed}")

    @on_rank_zero
    def record_failure(self, reason: str, *, images_seen: int) -> None:
        """Write the state `failed` at once, from any thread. `close` does the rest."""
        folder = self.folder
        if folder is not None and read_status(folder.path).state == "running":
            folder.write_status(
                "failed", reason, images_seen=images_seen, verdict=self.last_verdict
            )

    @on_rank_zero
    def close(self, state: str, reason: str, *, images_seen: int) -> None:
        """Record the outcome, then write the plot and the report, then wait for W&B.

        The order matters: a job that is being preempted may be killed before the last of them.
        """
        assert self.folder is not None
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
        for sink in self.sinks:
            sink.summarize({"state": state, "verdict": self.last_verdict})
            if state in ("done", "collapsed"):
                sink.keep_generator(self.folder.path, metadata={"images_seen": images_seen})
            sink.close(has_failed=state == "failed")
        folder, self.folder = self.folder, None
        folder.close()
        console.say(f"{state}: {reason}; {images_seen / 1000:g} kimg; {folder.path}")

    def plot(self) -> None:
        """Plot the rows of metrics so far as losses.png."""
        assert self.folder is not None
        folder = self.folder.path
        with explained(folder):
            save_losses_plot(
                read_rows(folder / "metrics.jsonl"),
                folder / "losses.png",
                epoch_images=self.epoch_images,
                equilibrium=equilibrium(self.config.loss),
            )

    def write_report(self, state: str, *, images_seen: int) -> None:
        """Write report.html. A report that cannot be written is a warning, never a failed run."""
        if self.folder is None or not self.config.log.report:
            return
        from distgan.reporting.page import REPORT_FILE, write_report
        from distgan.reporting.run_record import read_record

        folder = self.folder.path
        search_nearest = state in ("done", "collapsed")  # an interrupted run has no time for it
        try:
            write_report(read_record(folder), folder / REPORT_FILE, search_nearest=search_nearest)
        except Exception as error:  # a library or a disk may raise anything
            why = (str(error).strip() or type(error).__name__).splitlines()[0]
            with suppress(RunFailed):  # the disk may have no room for the warning either
                text = f"report.html was not written: {why}"
                self.event("warning", text, images_seen=images_seen)
