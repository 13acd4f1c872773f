"""A run folder as a reader finds it: what ran, how far, how well; whatever a file does not tell is left open."""

import json
import math
import shlex
import tomllib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from distgan.config.flat import flat_values
from distgan.config.schema import Config
from distgan.errors import UserError
from distgan.evaluation.metrics import METRICS, PUBLISHED_NAMES
from distgan.run.files import read_rows

VERDICTS = {
    "healthy": "No trouble was found: the fakes lie among the reals and cover enough of them. The figures and your eyes say how well.",
    "learning": "Nothing is wrong, but the fakes are not yet where the reals are.",
    "unbalanced": "One network has the upper hand, and the other learns little from it.",
    "memorising": "Some fakes are copies of training images.",
    "partial collapse": "The fakes are plausible but leave out a part of what the reals show.",
    "complete collapse": "The fakes are all but one image, or a handful.",
    "diverged": "A number is no longer finite; these weights are of no use.",
}
"""What each name of a verdict means, for whoever has not read the manual."""

MISSING = object()
STATUS = {"state": "unknown", "reason": "", "verdict": "", "time": "", "images_seen": 0}
PROVENANCE: dict[str, Any] = {
    "command": [],
    "git_commit": "",
    "versions": {},
    "world": {},
    "hardware": "",
}
GENERATOR: dict[str, Any] = {"generator": {}, "dataset": "", "fingerprint": ""}
"""What is read of each file, with what stands for anything missing or of another type."""


@dataclass(frozen=True)
class Setting:
    """One setting of a run beside its default."""

    name: str
    value: str
    default: str
    is_changed: bool


@dataclass(frozen=True)
class RunRecord:
    """A run folder, read once."""

    path: Path
    status: dict[str, Any]
    provenance: dict[str, Any]
    generator: dict[str, Any]  # generator.json, or what a checkpoint says of itself
    config: (
        Config | None
    )  # None where another version of distgan wrote settings that this one does not know
    settings: dict[str, Any]  # `section.field`: value, as config.toml has them
    rows: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    events: list[dict[str, Any]]

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.resolve().name

    @property
    def images_seen(self) -> int:
        """Real images consumed."""
        return int(self.status["images_seen"] or self.last("progress/images") or 0)

    @property
    def train_sec(self) -> float:
        """Time in the training loop."""
        return float(self.last("time/train_sec") or 0.0)

    @property
    def images_per_sec(self) -> float:
        """Mean speed over the whole run; not a number where nothing was measured."""
        return (self.last("progress/images") or 0) / self.train_sec if self.train_sec else math.nan

    @cached_property
    def epoch_images(self) -> int:
        """Images of the dataset, as the run counted them; 0 where it did not."""
        epochs = self.last("progress/epoch")
        return round(self.last("progress/images") / epochs) if epochs else 0

    @property
    def verdict(self) -> str:
        """Its name; empty where the run never judged itself."""
        return self.status["verdict"].partition(" (")[0]

    @property
    def verdict_detail(self) -> str:
        """The figures behind the verdict: those of the last event that named it."""
        said = [
            self.status["reason"],
            *(str(event.get("what", "")) for event in reversed(self.events)),
        ]
        for text in said:
            _, found, rest = text.partition(f"{self.verdict} (")
            if self.verdict and found:
                return rest.rpartition(")")[0]
        return ""

    @property
    def best_metric(self) -> str:
        """The metric that chooses the best checkpoint."""
        name = self.settings.get("evaluation.best_metric")
        name = name if name in METRICS else "quality/frechet"
        published = PUBLISHED_NAMES.get(name, name)
        return published if any(published in row["values"] for row in self.evaluations) else name

    @cached_property
    def best_evaluation(self) -> dict[str, Any] | None:
        """The best of all evaluations."""
        sign = -1 if METRICS[self.best_metric].better == "higher" else 1
        scored = [row for row in self.evaluations if is_number(row["values"].get(self.best_metric))]
        return min(scored, key=lambda row: sign * row["values"][self.best_metric], default=None)

    def last(self, name: str) -> Any:
        """The last value of a metric that is a number; None where there is none."""
        return next((row[name] for row in reversed(self.rows) if is_number(row.get(name))), None)

    @cached_property
    def sample_grids(self) -> list[tuple[float, Path]]:
        """(kimg, file) of the grids over the same latents, in the order of training."""
        grids = [
            (float(path.stem), path)
            for path in self.path.glob("samples/[0-9]*.png")
            if is_kimg(path.stem)
        ]
        return sorted(grids)

    @property
    def settings_table(self) -> list[Setting]:
        """Every setting with its default; those of an older or newer distgan too."""
        defaults = flat_values(Config())
        values = defaults | self.settings
        if "train.kimg" in self.settings:
            values["train.epochs"] = None
        return [
            Setting(
                name,
                shown(value),
                shown(defaults.get(name, MISSING)),
                value != defaults.get(name, MISSING),
            )
            for name, value in values.items()
        ]

    @property
    def command(self) -> str:
        """What to type to have this run again; empty where it is not known."""
        words = [str(word) for word in self.provenance["command"]]
        if not words:
            return ""
        world = self.provenance["world"]
        processes, launcher = world.get("processes", 1), ["accelerate", "launch"]
        if processes != 1:
            machine = "cpu" if world.get("device") == "cpu" else "one_node"
            launcher += [
                "--config_file",
                f"launch/{machine}.yaml",
                "--num_processes",
                str(processes),
            ]
        typed = shlex.join([*launcher, "distgan/train.py", *words[1:]])
        return f"ACCELERATE_USE_CPU=true {typed}" if "launch/cpu.yaml" in launcher else typed


def read_story(path: Path) -> RunRecord:
    """Read a run folder; raises UserError where it is none. Files that are missing or damaged count as empty."""
    if not is_run(path):
        raise UserError(
            f"{path} is no run folder; give one that training wrote, or a folder of them"
        )
    try:
        tree = tomllib.loads((path / "config.toml").read_text())
    except (OSError, ValueError):
        tree = {}
    try:
        config = Config.model_validate(tree)
    except ValueError:
        config = None
    descriptions = [
        path / "generator.json",
        *sorted(path.glob("checkpoints/[0-9]*/state.json"), reverse=True),
    ]
    generators = [read_object(file, GENERATOR) for file in descriptions]
    return RunRecord(
        path=path,
        status=read_object(path / "status.json", STATUS),
        provenance=read_object(path / "provenance.json", PROVENANCE),
        generator=next((told for told in generators if told["generator"]), GENERATOR),
        config=config,
        settings=flatten(tree),
        rows=[
            row
            for row in read_list(path / "metrics.jsonl")
            if is_number(row.get("progress/images"))
        ],
        evaluations=[
            row
            for row in read_list(path / "evaluations.jsonl")
            if is_number(row.get("progress/images")) and isinstance(row.get("values"), dict)
        ],
        events=[
            row
            for row in read_list(path / "events.jsonl")
            if is_number(row.get("images_seen")) and "what" in row
        ],
    )


def is_run(path: Path) -> bool:
    """Whether a folder is that of a run."""
    return (path / "config.toml").is_file() and (path / "status.json").is_file()


def find_runs(folder: Path) -> list[Path]:
    """The run folders in a folder, or in its folders, by name."""
    return sorted(
        path.parent
        for pattern in ("*", "*/*")
        for path in folder.glob(f"{pattern}/status.json")
        if is_run(path.parent)
    )


def read_object(path: Path, wanted: dict[str, Any]) -> dict[str, Any]:
    """The wanted entries of a JSON file, those of another type or of no readable file as they are in `wanted`."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        found = {}
    found = found if isinstance(found, dict) else {}
    return {
        name: found[name] if isinstance(found.get(name), type(usual)) else usual
        for name, usual in wanted.items()
    }


def read_list(path: Path) -> list[dict[str, Any]]:
    """The objects of a .jsonl file as far as they can be read."""
    try:
        return [row for row in read_rows(path) if isinstance(row, dict)]
    except (OSError, ValueError):
        return []


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A tree of tables as {`section.field`: value}."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= (
            flatten(value, f"{prefix}{name}.")
            if isinstance(value, dict)
            else {prefix + name: value}
        )
    return flat


def shown(value: Any) -> str:
    """A setting's value as it is typed."""
    if value is MISSING:
        return "unknown to this version"
    return "none" if value is None else value if isinstance(value, str) else json.dumps(value)


def is_kimg(text: str) -> bool:
    """Whether a file name is a count of thousand images."""
    return text.replace(".", "", 1).isdecimal()


def is_number(value: Any) -> bool:
    """Whether it is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def figures(value: Any) -> str:
    """A number in four significant figures, large ones in full; a dash for none."""
    if not is_number(value):
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1000 or float(value).is_integer() else f"{value:.4g}"
