"""A workspace of Weights & Biases with the charts that show whether runs are working."""

import warnings
from typing import Any, NamedTuple

from distgan.errors import UserError
from distgan.reporting.wandb_sink import offline_reason
from distgan.text import first_line


class Panel(NamedTuple):
    """A chart of metrics over images seen, or the images logged under one name."""

    title: str
    metrics: tuple[str, ...]
    limits: tuple[float | None, float | None] = (None, None)
    is_log: bool = False


def beside_reals(title: str, name: str, **options: Any) -> Panel:
    """Return a chart of a metric and its value for other real images."""
    return Panel(title, (name, f"reals/{name}"), **options)


SECTIONS: dict[str, tuple[Panel, ...]] = {
    "Samples": (
        Panel("Generated images", ("samples/fakes",)),
        Panel("Real images", ("samples/reals",)),
    ),
    "Quality, beside real images": (
        beside_reals("Fréchet distance", "quality/frechet", is_log=True),
        beside_reals("Precision: plausible images", "quality/precision", limits=(0, 1)),
        beside_reals("Recall: kinds of images", "quality/recall", limits=(0, 1)),
        beside_reals("Coverage", "quality/coverage", limits=(0, 1)),
        Panel("FID, if extractor=inception", ("quality/fid", "reals/quality/fid"), is_log=True),
    ),
    "Diversity": (
        Panel("Distances within a batch, over those of reals", ("diversity/batch_ratio",)),
        beside_reals("Near-duplicates", "diversity/duplicates", limits=(0, None)),
        beside_reals("Copies of training images", "diversity/copies", limits=(0, None)),
        beside_reals("Vendi score", "diversity/vendi"),
        Panel("Missing classes", ("diversity/missing_classes",)),
    ),
    "Balance of the two networks": (
        Panel("Discriminator accuracy", ("accuracy/d_real", "accuracy/d_fake"), limits=(0, 1)),
        Panel("Losses, over those at equilibrium", ("loss/d_relative", "loss/g_relative")),
        Panel("Losses", ("loss/d", "loss/g")),
        Panel("Mean logits", ("logits/real_mean", "logits/fake_mean")),
        Panel("Gradient norms", ("grad_norm/d", "grad_norm/g"), is_log=True),
    ),
    "Speed": (
        Panel("Images per second", ("time/images_per_sec", "time/step_images_per_sec")),
        Panel("Waiting for data", ("time/data_wait_frac",), limits=(0, 1)),
        Panel("Peak memory in GB", ("memory/peak_gb",)),
    ),
}
"""The panels of each section, in the order of the page."""


def save_workspace(project: str, *, entity: str | None, name: str) -> str:
    """Save a new workspace for a project and return its address.

    Without an `entity` it belongs to the logged-in user or their default team. Raises UserError.
    """
    try:
        import wandb

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecation warnings inside the library
            import wandb_workspaces.workspaces as ws
    except ImportError:
        raise UserError(
            "a workspace needs wandb-workspaces; type: pip install 'distgan[workspace]'"
        ) from None
    if reason := offline_reason(wandb):
        raise UserError(f"cannot reach Weights & Biases: {reason}")
    try:
        workspace = ws.Workspace(
            entity=entity or str(wandb.Api().default_entity),
            project=project,
            name=name,
            sections=[
                ws.Section(name=title, panels=[make_panel(panel) for panel in panels], is_open=True)
                for title, panels in SECTIONS.items()
            ],
            settings=ws.WorkspaceSettings(x_axis="progress/kimg"),
        )
        workspace.save()
        return str(workspace.url)
    except Exception as error:  # the library has no class of its own for refusals and lost networks
        raise UserError(f"Weights & Biases refused the workspace: {first_line(error)}") from None


def make_panel(panel: Panel) -> Any:
    """Return a panel in the library's terms."""
    import wandb_workspaces.reports.v2 as wr

    if panel.metrics[0].startswith("samples/"):
        return wr.MediaBrowser(title=panel.title, media_keys=list(panel.metrics), num_columns=1)
    return wr.LinePlot(
        title=panel.title,
        x="progress/kimg",
        y=list(panel.metrics),
        range_y=panel.limits,
        log_y=panel.is_log,
        title_x="thousands of images seen",
    )
