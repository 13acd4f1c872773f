"""A run folder as the reports see it. Whatever is missing or damaged is left out and named."""

import json
import math
import shlex
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from distgan.config.flat import flat_values, flatten
from distgan.config.metrics import EVALUATION_METRICS, PUBLISHED_NAMES, RANKING_METRICS
from distgan.config.schema import Config
from distgan.errors import UserError
from distgan.evaluation.evaluate import Result
from distgan.networks.generator_file import checkpoint_folders
from distgan.run.files import (
    EvaluationRow,
    Event,
    Provenance,
    Status,
    World,
    comparable_part,
    is_run,
    read_json,
    read_models,
    read_rows,
    read_toml,
    training_seconds,
)
from distgan.text import is_number
from shards.errors import printable

GOOD_VERDICTS = ("healthy", "learning")
UNKNOWN = object()


class Description(BaseModel):
    """A generator and its dataset, as stored in generator.json and in checkpoints."""

    generator: dict[str, Any] = {}
    dataset: str = ""
    fingerprint: str = ""


@dataclass(frozen=True)
class Setting:
    """A setting of a run and its default."""

    name: str
    value: str
    default: str
    is_changed: bool


@dataclass(frozen=True)
class RunRecord:
    """The contents of a run folder."""

    path: Path
    status: Status
    provenance: Provenance
    description: Description
    config: Config | None  # None if the settings are those of another version of distgan
    settings: dict[str, Any]  # {`section.field`: value} of config.toml
    rows: list[dict[str, Any]]
    evaluations: list[EvaluationRow]
    events: list[Event]
    warnings: tuple[str, ...]

    @property
    def name(self) -> str:
        """The folder's name, in which bytes that are not UTF-8 are replaced."""
        return printable(self.path.resolve().name)

    @property
    def images_seen(self) -> int:
        """Real images consumed. The status of a run in training has those of its start."""
        return int(max(self.status.images_seen or 0, self.last("progress/images") or 0))

    @property
    def train_sec(self) -> float:
        """Time in the training loop, pauses included, over all starts."""
        return training_seconds(self.status, self.rows)

    @property
    def images_per_sec(self) -> float:
        """Images per second of the whole run, pauses included; NaN if unknown."""
        return (self.last("progress/images") or 0) / self.train_sec if self.train_sec else math.nan

    @cached_property
    def images_per_epoch(self) -> int:
        """Number of images in the dataset, 0 if unknown."""
        epochs = self.last("progress/epoch")
        return round(self.last("progress/images") / epochs) if epochs else 0

    @property
    def dataset_name(self) -> str:
        """Where the images are stored."""
        return str(self.settings.get("data.shards") or "digits from scikit-learn")

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the dataset, empty if unknown."""
        return self.description.dataset or self.description.fingerprint

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """Channels, height and width of the images, None if unknown."""
        spec = self.description.generator
        match spec.get("channels"), spec.get("image_size"):
            case (int(channels), int(side)):
                return channels, side, side
            case (int(channels), [int(height), int(width)]):
                return channels, height, width
        return None

    @property
    def verdict(self) -> str:
        """Name of the last verdict, empty if there is none."""
        return self.status.verdict.partition(" (")[0]

    @property
    def verdict_detail(self) -> str:
        """Figures of the last verdict that has any, otherwise empty."""
        for text in (self.status.reason, *(event.what for event in reversed(self.events))):
            _, found, rest = text.partition(f"{self.verdict} (")
            if self.verdict and found:
                return rest.rpartition(")")[0]
        return ""

    @property
    def best_metric(self) -> str:
        """The metric that selects the best checkpoint, by the name that the evaluations use."""
        name = self.settings.get("evaluation.best_metric")
        name = name if isinstance(name, str) and name in RANKING_METRICS else "quality/frechet"
        published = PUBLISHED_NAMES.get(name, name)
        rows = self.comparable_evaluations
        return published if any(published in row.values for row in rows) else name

    @cached_property
    def comparable_evaluations(self) -> list[EvaluationRow]:
        """The evaluations that were made as the last one was, so that scores can be compared."""
        if not self.evaluations:
            return []
        last = comparable_part(self.evaluations[-1].protocol)
        return [row for row in self.evaluations if comparable_part(row.protocol) == last]

    @cached_property
    def best_evaluation(self) -> EvaluationRow | None:
        """The evaluation with the best `best_metric`, of those that can be compared."""
        sign = -1 if EVALUATION_METRICS[self.best_metric].better == "higher" else 1
        rows = self.comparable_evaluations
        scored = [row for row in rows if is_number(row.values.get(self.best_metric))]
        return min(scored, key=lambda row: sign * row.values[self.best_metric], default=None)

    @property
    def protocol_line(self) -> str:
        """How the last evaluation was made; empty if it was made by another version of distgan."""
        try:
            return Result.from_dict(self.evaluations[-1].model_dump()).protocol.line()
        except (IndexError, KeyError, TypeError):
            return ""

    def last(self, name: str) -> Any:
        """Return the last finite value of a training metric, None if there is none."""
        return next((row[name] for row in reversed(self.rows) if is_number(row.get(name))), None)

    def curve(self, name: str) -> tuple[list[float], list[float]]:
        """Return (thousands of images, values) of a metric of training or evaluation.

        Of evaluations only those that can be compared.
        """
        points = [(row["progress/images"], row.get(name)) for row in self.rows]
        if name in EVALUATION_METRICS:
            points = [
                (row.images_seen, row.values.get(name)) for row in self.comparable_evaluations
            ]
        found = [
            (images / 1000, value) for images, value in points if isinstance(value, int | float)
        ]
        return [kimg for kimg, _ in found], [float(value) for _, value in found]

    @cached_property
    def sample_grids(self) -> list[tuple[float, Path]]:
        """(kimg, file) of each grid of generated images, in the order of training."""
        grids = [path for path in self.path.glob("samples/[0-9]*.png") if is_kimg(path.stem)]
        return sorted((float(path.stem), path) for path in grids)

    @property
    def settings_table(self) -> list[Setting]:
        """Every setting, with those that this version of distgan does not know."""
        defaults = flat_values(Config())
        values = defaults | self.settings
        if "train.kimg" in self.settings:
            values["train.epochs"] = None
        table = [(name, value, defaults.get(name, UNKNOWN)) for name, value in values.items()]
        return [
            Setting(name, format_setting(value), format_setting(default), value != default)
            for name, value, default in table
        ]

    @property
    def command(self) -> str:
        """The command line that trains this run, or empty."""
        if not self.provenance.command:
            return ""
        world, [_, *arguments] = self.provenance.world, self.provenance.command
        if arguments[:1] == ["train"]:  # typed as `distgan train`
            del arguments[0]
        if world.processes == 1:
            return shlex.join(["distgan", "train", *arguments])
        if self.provenance.slurm:
            return submission(world, arguments)
        config_file = "launch/cpu.yaml" if world.device == "cpu" else "launch/one_node.yaml"
        if world.nodes > 1:
            config_file = "launch/many_nodes.yaml"
        launcher = ["accelerate", "launch", "--config_file", config_file]
        launcher += ["--num_processes", str(world.processes)]
        if world.nodes > 1:
            launcher += ["--num_machines", str(world.nodes), "--machine_rank", "RANK"]
            launcher += ["--main_process_ip", "ADDRESS", "--main_process_port", "29500"]
        typed = shlex.join([*launcher, "distgan/train.py", *arguments])
        return f"ACCELERATE_USE_CPU=true {typed}" if world.device == "cpu" else typed


def submission(world: World, arguments: list[str]) -> str:
    """Return the command that submits a run of several processes to SLURM."""
    per_node = world.processes // max(1, world.nodes)
    command = ["sbatch", f"--nodes={world.nodes}"]
    if world.device != "cpu":
        command.append(f"--gpus-per-node={per_node}")
    typed = shlex.join([*command, "launch/slurm.sbatch", *arguments])
    return typed if world.device != "cpu" else f"PROCESSES_PER_NODE={per_node} {typed}"


def read_record(path: Path) -> RunRecord:
    """Read a run folder; raises UserError if it is none, and OSError if it cannot be read."""
    if not is_run(path):
        raise UserError(f"{path} is not a run folder; give one, or a folder of run folders")
    warnings: list[str] = []
    warn = warnings.append
    settings = read_toml(path / "config.toml", warn=warn)
    try:
        config = Config.model_validate(settings)
    except ValueError:
        config = None
    rows = read_rows(path / "metrics.jsonl", warn=warn)
    return RunRecord(
        path=path,
        status=read_json(path / "status.json", Status, warn=warn),
        provenance=read_json(path / "provenance.json", Provenance, warn=warn),
        description=read_description(path),
        config=config,
        settings=flatten(settings),
        rows=[row for row in rows if is_number(row.get("progress/images"))],
        evaluations=read_models(path / "evaluations.jsonl", EvaluationRow, warn=warn),
        events=read_models(path / "events.jsonl", Event, warn=warn),
        warnings=tuple(warnings),
    )


def read_description(run: Path) -> Description:
    """Return what generator.json, or else the newest readable checkpoint, says of the generator."""
    states = [folder / "state.json" for folder in reversed(checkpoint_folders(run))]
    found = (read_json(path, Description) for path in [run / "generator.json", *states])
    return next((each for each in found if each.generator), Description())


def format_setting(value: Any) -> str:
    """Return a setting's value as it is typed."""
    if value is UNKNOWN:
        return "not in this version"
    return "none" if value is None else value if isinstance(value, str) else json.dumps(value)


def is_kimg(text: str) -> bool:
    """Return whether a file name is a number of thousand images."""
    return text.replace(".", "", 1).isdecimal()
