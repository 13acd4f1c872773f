"""Weights & Biases around the runs: `distgan wandb-workspace`, and a sweep with its agent."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from distgan.config.load import load_config
from distgan.config.metrics import EVALUATION_METRICS, TRAINING_METRICS
from distgan.config.schema import Config
from distgan.reporting.wandb_workspace import SECTIONS
from tests.test_commands import call
from tests.wandb_server import WandbServer
from tests.worlds import run_world, train_run

ROOT = Path(__file__).parent.parent
SWEEP = ROOT / "launch" / "wandb-sweep.yaml"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WandbServer:
    """A server, and a user who is logged in."""
    server = WandbServer()
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    return server


def test_panels_show_metrics_that_runs_log() -> None:
    """Each name is one of the metrics' tables, a metric of real images, or a sample grid."""
    logged = {*TRAINING_METRICS, *EVALUATION_METRICS, "samples/fakes", "samples/reals"}
    logged |= {f"reals/{name}" for name in EVALUATION_METRICS}
    shown = [name for panels in SECTIONS.values() for panel in panels for name in panel.metrics]
    assert set(shown) - logged == set()
    assert len(shown) == len(set(shown))


def test_workspace_is_saved(server: WandbServer) -> None:
    """The server gets the sections with their panels; the command prints the address."""
    pytest.importorskip("wandb_workspaces", reason="pip install 'distgan[workspace]'")
    code, said = call("wandb-workspace", "--project", "faces")
    assert (code, f"{server.url}/me/faces?nw=" in said.replace("\n", "")) == (0, True), said
    (view,) = server.views
    assert (view["entityName"], view["projectName"], view["displayName"]) == (
        "me",
        "faces",
        "distgan",
    )
    sections = json.loads(view["spec"])["section"]["panelBankConfig"]["sections"]
    shown = {section["name"]: panels_of(section) for section in sections if section["panels"]}
    assert shown == {
        name: [(panel.title, list(panel.metrics)) for panel in panels]
        for name, panels in SECTIONS.items()
    }


def panels_of(section: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """Return title and metrics of each panel; the x-axis of charts is images seen."""
    found = []
    for panel in section["panels"]:
        config = panel["config"]
        is_chart = panel["viewType"] == "Run History Line Plot"
        assert not is_chart or config["xAxis"] == "progress/kimg"
        title = config.get("chartTitle") or config.get("title")
        found.append((title, config["metrics"] if is_chart else config["mediaKeys"]))
    return found


def test_user_without_a_key_is_told_to_log_in(
    server: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb_workspaces", reason="pip install 'distgan[workspace]'")
    monkeypatch.delenv("WANDB_API_KEY")
    code, said = call("wandb-workspace")
    assert (code, "wandb login" in said, server.views) == (2, True, []), said


def test_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces.workspaces", None)
    code, said = call("wandb-workspace")
    assert (code, "distgan[workspace]" in said) == (2, True), said


def test_sweep_file_has_valid_settings() -> None:
    """W&B turns it into commands for the trainer, whose settings are all accepted."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

    sweep = yaml.safe_load(SWEEP.read_text())
    assert (ROOT / sweep["program"]).is_file()
    assert sweep["project"] == Config().log.project
    kind, _, metric = sweep["metric"]["name"].partition("/")
    assert (kind, metric) == ("best", Config().evaluation.best_metric)
    assert {"lower": "minimize", "higher": "maximize"}[EVALUATION_METRICS[metric].better] == (
        sweep["metric"]["goal"]
    )
    place = sweep["command"].index("${program}")
    preset_option, preset, *fixed, last = sweep["command"][place + 1 :]
    assert (preset_option, last) == ("--preset", "${args_no_hyphens}")
    choices = {
        name: values.get("values") or [values["min"], values["max"]]
        for name, values in sweep["parameters"].items()
    }
    for number in range(max(map(len, choices.values()))):
        arguments = {name: {"value": v[number % len(v)]} for name, v in choices.items()}
        words = create_sweep_command_args({"args": arguments})["args_no_hyphens"]
        assert len(words) == len(choices)
        load_config(preset, [*fixed, *words])


@pytest.mark.slow
def test_run_of_an_agent_belongs_to_the_sweep(
    server: WandbServer, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the agent's environment the run has the id that the sweep gave it, and its metric."""
    chosen = {"wandb_version": 1, "optim.lr_g": {"value": 1e-4}}
    (tmp_path / "chosen.yaml").write_text(yaml.safe_dump(chosen))
    monkeypatch.setenv("WANDB_SWEEP_ID", "mysweep")
    monkeypatch.setenv("WANDB_RUN_ID", "run7")
    monkeypatch.setenv("WANDB_SWEEP_PARAM_PATH", str(tmp_path / "chosen.yaml"))
    monkeypatch.setenv("WANDB_FINISH_TIMEOUT", "30")
    settings = [
        "log.wandb=online",
        "train.kimg=0.024",
        "evaluation.every_kimg=0.024",
        "optim.lr_g=1e-4",
    ]
    assert run_world(1, train_run, shards, tmp_path / "run", settings)[0]["state"] == "done"
    server.die()
    assert (server.run["sweep"], server.run["name"]) == ("mysweep", "run7")
    sweep = yaml.safe_load(SWEEP.read_text())
    assert isinstance(server.summary[sweep["metric"]["name"]], float)
