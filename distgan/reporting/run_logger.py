"""The log of a run, which rank zero writes to the run folder, the console, W&B and TensorBoard."""

import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial, wraps
from typing import Any

from torch import Tensor

from distgan.config.flat import flat_values, to_toml
from distgan.config.schema import Config
from distgan.errors import RunFailed
from distgan.evaluation.by_class import flat_values as class_values
from distgan.evaluation.evaluate import Result
from distgan.evaluation.verdict import Verdict
from distgan.images import save_grid, save_losses_plot
from distgan.losses.adversarial import equilibrium
from distgan.reporting import console
from distgan.reporting.lines import evaluation_line, outcome_line
from distgan.reporting.metrics import explain_distance
from distgan.reporting.sinks import Sink
from distgan.reporting.tensorboard_sink import TensorBoardSink
from distgan.reporting.wandb_sink import WandbSink, default_group, new_run_id
from distgan.run.files import Provenance, Status, first_alike, read_json, read_rows, read_status
from distgan.run.folder import FINISHED_STATES, RunFolder, explained
from distgan.text import first_line, format_kimg
from shards.files import write_atomic

NO_PRESET = "run"  # name of runs from Python, and of those of versions without a recipe
REALS_FILE = "reals.png"  # among the samples


def on_rank_zero(method: Callable[..., None]) -> Callable[..., None]:
    """Make a method of RunLogger do nothing on ranks without a run folder."""

    @wraps(method)
    def guarded(self: "RunLogger", *args: Any, **kwargs: Any) -> None:
        if self.folder is not None:
            method(self, *args, **kwargs)

    return guarded


class RunLogger:
    """The log of one run. On ranks other than zero, `folder` is None and nothing is logged."""

    def __init__(
        self,
        folder: RunFolder | None,
        *,
        name: str,
        config: Config,
        wandb_id: str | None,
        total_images: int,
        images_per_epoch: int,
    ) -> None:
        self.folder, self.name, self.config = folder, name, config
        self.wandb_id = wandb_id or new_run_id()
        self.total_images, self.images_per_epoch = total_images, images_per_epoch
        self.console: console.TrainingConsole | None = None
        self.sinks: list[Sink] = []
        self.last_verdict = "learning"  # a new run has this verdict
        self.unrecorded: RunFailed | None = None  # why the outcome could not be recorded

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

        Rows of steps that will be trained again are dropped. A resumed run keeps the record of the
        weights that it once started from.
        """
        folder = self.folder
        assert folder is not None
        if images_seen:
            earlier = read_json(folder.path / "provenance.json", Provenance)
            provenance = provenance | {"initial_weights": earlier.initial_weights}
        with explained(folder.path):
            folder.truncate_after(images_seen)
            write_atomic(folder.path / "config.toml", to_toml(self.config))
            write_atomic(folder.path / "provenance.json", json.dumps(provenance, indent=1) + "\n")
        folder.write_status("running", "training", images_seen=images_seen)
        if len(table) > 1:
            console.show_table("distgan", table)
        else:
            console.say(": ".join(table[0]), style="bold")
        self.console = console.TrainingConsole(total_images=self.total_images)
        if images_seen:
            sentence = "; ".join([f"resumed at {format_kimg(images_seen)}", *notes])
            self.event("resume", sentence, images_seen=images_seen)
        elif notes:
            self.event("start", "; ".join(notes), images_seen=0)
        self.sinks = self.open_sinks(provenance["world"], images_seen=images_seen)

    def open_sinks(self, world: dict[str, Any], *, images_seen: int) -> list[Sink]:
        """Open W&B and, if `log.tensorboard` is set, TensorBoard."""
        assert self.folder is not None
        folder, log = self.folder.path, self.config.log
        config = flat_values(self.config) | {"world": world}
        presets = [] if self.name == NO_PRESET else [self.name]

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
            tags=[*presets, f"{world['processes']}x{world['device']}"],
            warn=warn,
        )
        if not log.tensorboard:
            return [wandb]
        # Sinks are closed in this order. W&B comes last, because waiting for it may take too long
        # when the run is interrupted.
        return [TensorBoardSink(folder, config=config, images_seen=images_seen, warn=warn), wandb]

    @on_rank_zero
    def already_done(self, *, images_seen: int) -> None:
        """Say that nothing is left to train, and release the run folder."""
        assert self.folder is not None
        self.say(
            f"{self.folder.path} has already finished, at {format_kimg(images_seen)}; to train "
            "longer, raise train.epochs or train.kimg; to train again, set train.seed or --run-dir"
        )
        self.folder.close()

    # ------------------------------------------------------------------------------------ running

    @on_rank_zero
    def say(self, text: str, *, style: str = "") -> None:
        """Print one line to the console."""
        (self.console or console).say(text, style=style)

    @on_rank_zero
    def forecast(self, rows: list[tuple[str, str]]) -> None:
        """Print how long the run will take and how much disk it needs."""
        for name, text in rows:
            self.say(f"{name}: {text}")

    @on_rank_zero
    def event(
        self, kind: str, sentence: str, *, images_seen: int, style: str = "", **figures: Any
    ) -> None:
        """Append an event to events.jsonl and print its sentence."""
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
        """Log the result of an evaluation and the same metrics of real images."""
        assert self.folder is not None
        kimg, values = images_seen / 1000, result.values
        self.folder.append("evaluations.jsonl", {"progress/images": images_seen} | result.to_dict())
        reals = {f"reals/{name}": value for name, value in result.reals.items()}
        reals |= class_values(result.by_class)
        for sink in self.sinks:
            sink.log({"progress/kimg": kimg} | values | reals)
        if is_best:
            best = {f"best/{name}": value for name, value in values.items()}
            for sink in self.sinks:
                sink.summarize({"best/kimg": kimg} | best)
        first = first_alike(read_rows(self.folder.path / "evaluations.jsonl"))
        is_first = first["progress/images"] == images_seen
        self.say(
            evaluation_line(
                result,
                first={} if is_first else first["values"],
                is_best=is_best,
                images_seen=images_seen,
            )
        )
        if is_first and (explanation := explain_distance(values, result.reals)):
            self.say(explanation)

    @on_rank_zero
    def verdict(self, verdict: Verdict, *, images_seen: int) -> None:
        """Log a verdict if its name has changed, and send an alert if the run is in trouble."""
        if verdict.name == self.last_verdict:
            return
        assert self.folder is not None
        self.last_verdict = verdict.name
        style = "bold red" if verdict.is_trouble else "green"
        self.event(
            "verdict", str(verdict), images_seen=images_seen, verdict=verdict.name, style=style
        )
        if verdict.is_trouble:
            self.say(verdict.explanation)
        self.folder.write_status(
            "running", "training", images_seen=images_seen, verdict=str(verdict)
        )
        text = f"{self.folder.path.name} at {format_kimg(images_seen)}: {verdict}"
        for sink in self.sinks if verdict.is_trouble else ():
            sink.alert(verdict.name, text)

    @on_rank_zero
    def samples(
        self,
        fakes: Tensor,
        reals: Tensor | None,
        *,
        images_seen: int,
        columns: int | None = None,
    ) -> None:
        """Save and log grids of uint8 images [B, C, H, W]."""
        assert self.folder is not None
        kimg, folder = images_seen / 1000, self.folder.samples
        with explained(self.folder.path):
            path = save_grid(fakes, folder / f"{kimg:010.3f}.png", columns=columns)
            pictures = {
                "samples/fakes": (
                    path,
                    f"{format_kimg(images_seen)}, moving average, fixed latents",
                )
            }
            if reals is not None:
                path = save_grid(reals, folder / REALS_FILE, columns=columns)
                pictures["samples/reals"] = (path, "real images")
        for sink in self.sinks:
            sink.log({"progress/kimg": kimg}, pictures)

    # ---------------------------------------------------------------------------------------- end

    @on_rank_zero
    def time_table(
        self, maintenance_sec: dict[str, float], *, total_sec: float, num_images: int
    ) -> None:
        """Print the time of this start, its parts, and the speed with and without pauses.

        A start that was interrupted before its first step has no speed.
        """
        step_sec = total_sec - sum(maintenance_sec.values())
        parts = {"steps": step_sec} | maintenance_sec
        listed = ", ".join(f"{name} {seconds:,.1f} s" for name, seconds in parts.items())
        speed, step_speed = num_images / max(total_sec, 1e-9), num_images / max(step_sec, 1e-9)
        speeds = f"; {speed:,.0f} images/s, {step_speed:,.0f} in the steps alone"
        self.say(f"time of this start: {total_sec:,.1f} s ({listed}){speeds if num_images else ''}")

    @on_rank_zero
    def record_failure(self, reason: str, *, images_seen: int) -> None:
        """Write the state `failed` to status.json. Any thread may call it before `close`."""
        folder = self.folder
        if folder is not None and read_status(folder.path).state == "running":
            folder.write_status(
                "failed", reason, images_seen=images_seen, verdict=self.last_verdict
            )

    @on_rank_zero
    def close(
        self, state: str, reason: str, *, images_seen: int, seconds: float | None = None
    ) -> None:
        """Record the outcome, write the plot and the report, then wait for W&B.

        A preempted job may be killed before all of it is done, so its outcome is recorded first.
        The outcome of a finished run comes last: if the run is killed before it is recorded, the
        same command writes the plot and the report again. `seconds` is the time of training over
        all starts.
        """
        assert self.folder is not None
        has_finished = state in FINISHED_STATES
        status = Status(
            state=state,
            reason=reason,
            verdict=self.last_verdict,
            images_seen=images_seen,
            seconds=seconds,
        )
        record_status = partial(self.folder.write_status, **status.model_dump(exclude={"time"}))
        try:
            self.folder.add_event(state, reason, images_seen=images_seen)
            if not has_finished:
                record_status()
            self.plot()
            self.write_report(status)
            if has_finished:
                record_status()
        except RunFailed as error:
            self.unrecorded = RunFailed(f"the outcome could not be recorded: {error}")
            if state == "failed":  # then the failure itself is what the run ends with
                self.say(str(self.unrecorded))
        if self.console is not None:
            self.console.close()
        for sink in self.sinks:
            sink.summarize({"state": state, "verdict": self.last_verdict})
            if has_finished:
                sink.keep_generator(self.folder.path, metadata={"images_seen": images_seen})
            sink.close(has_failed=state == "failed")
        folder, self.folder = self.folder, None
        folder.close()
        if state == "done":
            reason = f"Verdict: {self.last_verdict}"
        console.say(
            outcome_line(state, reason, folder.path, images_seen=images_seen, seconds=seconds)
        )

    def plot(self) -> None:
        """Plot all rows of metrics as losses.png."""
        assert self.folder is not None
        folder = self.folder.path
        with explained(folder):
            save_losses_plot(
                read_rows(folder / "metrics.jsonl"),
                folder / "losses.png",
                images_per_epoch=self.images_per_epoch,
                equilibrium=equilibrium(self.config.loss),
            )

    def write_report(self, status: Status) -> None:
        """Write report.html with this outcome. If that fails, the run only warns."""
        if self.folder is None or not self.config.log.report:
            return
        from distgan.reporting.page import REPORT_FILE, write_report
        from distgan.reporting.run_record import read_record

        folder = self.folder.path
        # It takes too long for an interrupted run.
        search_nearest = status.state in FINISHED_STATES
        try:
            record = replace(read_record(folder), status=status)
            write_report(record, folder / REPORT_FILE, search_nearest=search_nearest)
        except Exception as error:  # a library or a disk may raise anything
            with suppress(RunFailed):  # a full disk has no room for the warning either
                text = f"could not write report.html: {first_line(error)}"
                self.event("warning", text, images_seen=status.images_seen)
