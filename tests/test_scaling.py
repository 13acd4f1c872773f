"""Settings that follow the batch size and the number of processes."""

from pathlib import Path

import pytest

from distgan.api import equal_command
from distgan.config.flat import flat_values, identity_hash
from distgan.config.load import load_config
from distgan.config.scaling import adaptations, scale_to_batch
from distgan.config.schema import Config
from distgan.errors import UserError
from distgan.run.preflight import remedied, settings_for
from distgan.runtime.distributed import World
from tests.worlds import SMALL, rows, run_world, train_run

STRONG = "cifar10-strong"
ALONE = World(0, 1)


def test_settings_follow_the_square_root_rule() -> None:
    """8 times the batch: rates times the root of 8, 1 - beta2 times 8, penalties at every step."""
    scaled = scale_to_batch(load_config(STRONG, ["train.batch_size=128"]))
    assert scaled.optim.lr_g == scaled.optim.lr_d == pytest.approx(4e-4 * 8**0.5)
    assert scaled.optim.betas == (0.0, pytest.approx(0.92))
    assert scaled.optim.epsilon == pytest.approx(1e-8 / 8**0.5)
    assert scaled.loss.penalty_interval == 1
    assert scaled.train.ema_halflife_kimg == load_config(STRONG).train.ema_halflife_kimg
    smaller = scale_to_batch(load_config(STRONG, ["train.batch_size=8"]))
    assert (smaller.loss.penalty_interval, smaller.optim.betas[1]) == (16, pytest.approx(0.995))


def test_a_remedy_follows_the_batch_size_like_any_setting() -> None:
    """It is meant for the reference batch, and the settings that it leaves out stay."""
    remedy = "collapse.remedy=['optim.lr_d=2e-4']"
    given = load_config(STRONG, ["train.batch_size=128", remedy])
    before = settings_for(given, 1)
    after = remedied(before, ALONE)
    assert after.optim.lr_d == pytest.approx(2e-4 * 8**0.5)
    assert after.optim.model_copy(update={"lr_d": before.optim.lr_d}) == before.optim
    assert after.train == before.train
    assert settings_for(before, 1) == before  # so config.toml means the same


def test_a_remedy_is_refused_with_a_batch_that_would_do() -> None:
    """Eight processes share it in groups of four."""
    remedy = "collapse.remedy=['optim.betas=[0.0,0.9]']"
    with pytest.raises(UserError, match=r"collapse.remedy: .* at most train.batch_size=64"):
        settings_for(load_config(STRONG, [remedy]), 8)


def test_a_remedy_whose_groups_do_not_fit_is_refused() -> None:
    """Also when a run that was rolled back resumes on more processes."""
    remedy = "collapse.remedy=['loss.diversity.feature_distance=1']"
    config = settings_for(load_config(STRONG, ["train.batch_size=16", remedy]), 1)
    assert remedied(config, ALONE).loss.diversity.feature_distance == 1
    with pytest.raises(UserError, match="cannot be split over 4 processes"):
        remedied(config, World(0, 4))


def test_a_remedy_beyond_the_rule_is_refused_at_the_start() -> None:
    """Not hours later, when a collapse makes it necessary."""
    remedy = "collapse.remedy=['optim.betas=[0.0,0.9]']"
    given = load_config(STRONG, ["train.batch_size=128", "collapse.action=rollback", remedy])
    with pytest.raises(UserError, match=r"collapse.remedy: train.batch_size=128 .* use at most"):
        settings_for(given, 1)


def test_a_remedy_chooses_what_follows_other_settings() -> None:
    """Unrolled steps are SGD's if the discriminator's are, as without a rollback."""
    words = ["optim.name=sgd", "collapse.remedy=['loss.unroll_steps=5']"]
    config = load_config(None, words)
    assert remedied(settings_for(config, 1), ALONE).loss.unroll_optimizer == "sgd"


def test_intervals_and_decay_stay_the_same_per_image() -> None:
    """With four times the batch lookahead comes four times as often, and adamw decays more."""
    words = ["train.batch_size=64", "optim.name=adamw", "optim.weight_decay=0.01"]
    config = load_config(STRONG, [*words, "optim.lookahead_steps=10"])
    scaled = scale_to_batch(config)
    assert (scaled.optim.lookahead_steps, scaled.optim.weight_decay) == (2, pytest.approx(0.02))
    assert "optim.lookahead_steps 10 -> 2" in adaptations(config, scaled)


def test_derived_settings_are_not_derived_again() -> None:
    """A run's config.toml holds what was derived, and means the same when it is read again."""
    scaled = scale_to_batch(load_config(STRONG, ["train.batch_size=128"]))
    assert scale_to_batch(scaled) == scaled


def test_the_command_of_settings_without_a_reference_batch_trains_the_same() -> None:
    """A run from Python records a command line, whose preset would follow the batch."""
    config = Config.model_validate({"train": {"batch_size": 64}})
    words = equal_command(config, Path("run"))[6:]
    again = settings_for(load_config("classic", words), 1)
    assert flat_values(again) == flat_values(settings_for(config, 1))


@pytest.mark.parametrize("preset", ["digits", "cifar10", STRONG])
def test_a_preset_at_its_own_batch_stays_the_same_run(preset: str) -> None:
    """The reference batch changes neither a setting nor the name of the run's folder."""
    config = load_config(preset)
    without = config.model_copy(
        update={"optim": config.optim.model_copy(update={"reference_batch": None})}
    )
    assert scale_to_batch(config) == without
    assert adaptations(config, without) == ""
    assert identity_hash(config, "data") == identity_hash(without, "data")


def test_sgd_follows_the_batch_linearly() -> None:
    """SGD's learning rates grow with the batch."""
    config = load_config(STRONG, ["optim.name=sgd", "train.batch_size=64"])
    assert scale_to_batch(config).optim.lr_g == pytest.approx(4 * 4e-4)


def test_a_batch_that_is_much_smaller_keeps_settings_in_their_ranges() -> None:
    """Neither the second beta nor the penalties' interval leaves its range."""
    words = ["optim.reference_batch=2048", "train.batch_size=1", "loss.penalty_interval=8"]
    scaled = scale_to_batch(load_config(None, words))
    assert scaled.optim.betas[1] < 1
    assert scaled.loss.penalty_interval == 1024


def test_scaling_can_be_turned_off() -> None:
    """With optim.scaling=none another batch keeps the learning rates."""
    config = load_config(STRONG, ["train.batch_size=128", "optim.scaling=none"])
    assert settings_for(config, 8).optim.lr_g == config.optim.lr_g


@pytest.mark.parametrize(
    ("num_processes", "batch_size"), [(1, 16), (2, 16), (4, 16), (3, 48), (6, 96), (8, 128)]
)
def test_processes_get_a_batch_that_they_can_share(num_processes: int, batch_size: int) -> None:
    """Groups of four images stay together; other processes get the reference batch each."""
    assert settings_for(load_config(STRONG), num_processes).train.batch_size == batch_size


def test_a_large_world_shares_at_most_16_times_the_batch() -> None:
    """64 processes get 4 images each."""
    assert settings_for(load_config(STRONG), 64).train.batch_size == 256


def test_a_batch_that_was_chosen_is_kept() -> None:
    """Only the preset's own batch is enlarged, not the same number where the user gave it."""
    for size in (16, 24):
        config = load_config(STRONG, [f"train.batch_size={size}"])
        assert settings_for(config, 8).train.batch_size == size
    typed = load_config(STRONG, ["train.batch_size=16"])
    assert settings_for(typed, 1) == settings_for(load_config(STRONG), 1)


def test_each_process_gets_enough_images_for_batch_norm() -> None:
    """64 processes could share a batch of 64, but with one image each."""
    assert settings_for(load_config("digits"), 16).train.batch_size == 64
    assert settings_for(load_config("digits"), 64).train.batch_size == 1024
    accumulating = load_config("digits", ["train.accumulate=32"])
    assert settings_for(accumulating, 1).train.batch_size == 128


def test_a_batch_beyond_the_rule_is_refused() -> None:
    """The error names the largest batch that can be shared, and the ways to go on; both work."""
    config = load_config(STRONG, ["train.batch_size=4096"])
    with pytest.raises(UserError, match=r"256 times .* 50 times; .*=800, .*optim.scaling=none"):
        scale_to_batch(config)
    with pytest.raises(UserError, match=r"at most train.batch_size=768, or fewer processes"):
        settings_for(config, 64)
    with pytest.raises(UserError, match=r"use fewer processes, or .*=1024 optim.scaling=none"):
        settings_for(load_config(STRONG), 256)
    words = ("train.batch_size=800", "train.batch_size=1024 optim.scaling=none")
    for num_processes, size in zip((1, 256), words, strict=True):
        settings_for(load_config(STRONG, size.split()), num_processes)


def test_a_run_on_three_processes_starts_and_resumes_with_a_larger_batch(
    shards: Path, tmp_path: Path
) -> None:
    """Three processes cannot share 4 images in groups of 4: they train with 12."""
    small = [setting for setting in SMALL if not setting.startswith("train.batch_size")]
    overrides = [
        *small, "train.batch_size=4", "optim.reference_batch=4", "networks.minibatch_stddev=4",
        "loss.penalty_interval=1",
    ]  # fmt: skip
    for kimg in (0.012, 0.024):
        results = run_world(
            3, train_run, shards, tmp_path / "run", [*overrides, f"train.kimg={kimg}"]
        )
        assert {result["state"] for result in results} == {"done"}
    assert [row["progress/images"] for row in rows(tmp_path / "run")] == [12, 24]
    with pytest.raises(AssertionError, match=r"other settings: train.batch_size was 12, now 4\. "):
        run_world(1, train_run, shards, tmp_path / "run", overrides)
    assert "batch_size = 12\n" in (tmp_path / "run/config.toml").read_text()
