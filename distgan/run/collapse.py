"""The reaction to a collapse, chosen by the setting `collapse.action`."""

from enum import Enum

from distgan.config.schema import Collapse
from distgan.errors import RunFailed
from distgan.evaluation.verdict import Verdict
from distgan.text import pluralize


class Reaction(Enum):
    """A reaction of the training loop to a verdict."""

    CONTINUE = "continue"
    ROLL_BACK = "roll back"
    STOP = "stop"


def react(
    verdict: Verdict, settings: Collapse, *, rollbacks: int, kimg: float, is_complete: bool
) -> Reaction:
    """Return the reaction to a verdict after `rollbacks` rollbacks.

    If the run is complete, no images are left with which a restored generator could train.
    Raises RunFailed if training has diverged and `collapse.action` is not `rollback`.
    """
    if not verdict.is_collapse:
        return Reaction.CONTINUE
    if settings.action == "rollback":
        can_roll_back = rollbacks < settings.max_rollbacks and not is_complete
        return Reaction.ROLL_BACK if can_roll_back else Reaction.STOP
    if verdict.name == "diverged":
        raise RunFailed(
            f"{verdict} at {kimg:g} kimg; its checkpoints are kept; start another run with lower "
            "optim.lr_g and optim.lr_d, or resume from the last checkpoint with "
            "collapse.action=rollback"
        )
    return Reaction.STOP if settings.action == "stop" else Reaction.CONTINUE


def reason_to_stop(verdict: Verdict, settings: Collapse, *, rollbacks: int) -> str:
    """Return the reason that status.json gives for a collapsed run."""
    if not rollbacks:
        return str(verdict)
    number = pluralize(rollbacks, "rollback")
    if rollbacks < settings.max_rollbacks:
        return f"{verdict}; at the end of the run, after {number}"
    return f"{verdict}; gave up after {number}"
