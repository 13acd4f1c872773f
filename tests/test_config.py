"""Settings: precedence, errors for people, registries, round trips."""

import typing
from pathlib import Path

import pytest

from distgan.config.load import load_config, preset_names, to_toml
from distgan.config.schema import Config, Loss, Networks, Optim, total_images
from distgan.config.values import flat_fields, flat_values, identity_hash
from distgan.errors import UserError
from distgan.losses.adversarial import ADVERSARIAL
from distgan.losses.augmentation import AUGMENTATIONS
from distgan.losses.penalties import PENALTIES
from distgan.networks.build import NETWORKS
from distgan.optimizers import OPTIMIZERS, SCHEDULES
from distgan.run.preflight import check_batch
from distgan.runtime.distributed import World


@pytest.mark.parametrize("name", preset_names())
def test_presets_load_and_survive_a_round_trip(name: str, tmp_path: Path) -> None:
    """Every shipped preset is valid and its TOML reads back to itself."""
    config = load_config(name)
    (tmp_path / "config.toml").write_text(to_toml(config))
    assert load_config(str(tmp_path / "config.toml")) == config


def test_later_layers_win_and_lengths_replace_each_other() -> None:
    """Default < preset < command line; kimg on the command line replaces the preset's epochs and the reverse."""
    config = load_config(
        "cifar10", ["train.kimg=5", "optim.betas=[0.0, 0.99]", "data.shards=some/where"]
    )
    assert (config.train.kimg, config.train.epochs) == (5.0, None)
    assert config.optim.betas == (0.0, 0.99)
    assert config.data.shards == "some/where"
    assert total_images(config.train, 1000) == 5000
    assert (
        total_images(load_config("cifar10", ["train.kimg=5", "train.epochs=2"]).train, 1000) == 2000
    )


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("train.bach_size=3", "unknown setting 'train.bach_size'; did you mean train.batch_size?"),
        ("trian.batch_size=2", "unknown setting 'trian'; did you mean train?"),
        ("batch_size.x=3", "did you mean train.batch_size?"),
        (
            "optim.learning_rate=1",
            "unknown setting 'optim.learning_rate'; settings: optim.name, optim.lr_g, optim.lr_d,",
        ),
        ("train.batch_size=many", "train.batch_size='many': input should be a valid integer"),
        ("train.batch_size=0", "train.batch_size=0: input should be greater than or equal to 1"),
        ("loss.adversarial=foo", "loss.adversarial='foo': input should be 'bce'"),
        ("optim.betas=[2, 0]", "optim.betas=[2.0, 0.0]: both must be at least 0 and below 1"),
        ("train.kimg=nan", "train.kimg=nan: input should be a finite number"),
        ("train=3", "settings are written section.field=value"),
        ("nonsense", "settings are written section.field=value"),
    ],
)
def test_mistakes_are_one_line_with_the_value_and_the_remedy(word: str, expected: str) -> None:
    """What is wrong, the value, and what to type."""
    with pytest.raises(UserError) as caught:
        load_config(None, [word])
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_presets_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    """Unknown names list the choices; broken and missing files are named."""
    (tmp_path / "broken.toml").write_text("[train")
    for preset, expected in (
        ("cifr10", "choose from"),
        ("nowhere.toml", "nowhere.toml"),
        (str(tmp_path / "broken.toml"), "not valid TOML"),
    ):
        with pytest.raises(UserError, match=expected):
            load_config(preset)


def test_words_of_registries_are_the_words_of_the_settings() -> None:
    """Each choice in a setting has its entry in the registry, and the reverse."""
    for section, field, registry in (
        (Networks, "architecture", NETWORKS),
        (Loss, "adversarial", ADVERSARIAL),
        (Optim, "name", OPTIMIZERS),
        (Optim, "schedule", SCHEDULES),
    ):
        assert set(typing.get_args(section.model_fields[field].annotation)) == set(registry)
    assert set(PENALTIES) < set(Loss.model_fields)
    kinds = typing.get_args(Loss.model_fields["augment"].annotation)[0]
    assert set(typing.get_args(kinds)) == set(AUGMENTATIONS)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["loss.r1=1"], "add networks.discriminator_norm=none"),
        (["loss.label_smoothing=0.1", "loss.adversarial=hinge"], "use it with bce or lsgan"),
        (["loss.augment=blur"], "loss.augment='blur': input should be a valid tuple"),
        (
            ['loss.augment=["blur"]'],
            "loss.augment.0='blur': input should be 'color', 'translation' or 'cutout'",
        ),
        (["collapse.remedy=['optim.name=sgd']"], "a rollback can change settings of loss"),
        (["collapse.remedy=['loss.r1=1']"], "collapse.remedy: loss.r1, loss.r2 and"),
        (
            ["networks.discriminator_init=he", "networks.architecture=resnet"],
            "discriminator_init=he is of",
        ),
        (["networks.discriminator_init=he"], "add networks.discriminator_norm=none"),
        (
            ["networks.discriminator_refinements=1", "networks.architecture=resnet"],
            "resnet has its own",
        ),
        (["loss.diversity.mode_seking=1"], "did you mean loss.diversity.mode_seeking?"),
    ],
)
def test_what_does_not_go_together_is_refused(words: list[str], expected: str) -> None:
    """Before anything starts, with what to type instead."""
    with pytest.raises(UserError) as caught:
        load_config(None, words)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("words", "fitting"),
    [
        (
            ["networks.minibatch_stddev=4", "train.batch_size=6"],
            "in groups of 4 (networks.minibatch_stddev); use 8",
        ),
        (
            ["networks.packing=2", "networks.minibatch_stddev=4", "train.batch_size=20"],
            "groups of 8 .*; use 16 or 32",
        ),
        (["loss.diversity.mode_seeking=1", "train.batch_size=36"], "groups of 8 .*use 32 or 48"),
    ],
)
def test_batches_hold_whole_groups(words: list[str], fitting: str) -> None:
    """Over two processes; the message names batches that fit, and they do."""
    with pytest.raises(UserError, match=fitting.replace("(", r"\(").replace(")", r"\)")):
        check_batch(load_config(None, words), World(0, 2))
    check_batch(load_config(None, [*words, "train.batch_size=64"]), World(0, 2))


def test_identity_is_what_changes_the_weights() -> None:
    """Length, logging and checkpoints leave a run what it is; seed, batch and dataset do not."""
    plain = identity_hash(Config(), "fingerprint")
    same = load_config(
        None, ["train.kimg=9", "log.every_kimg=1", "checkpoint.keep=9", "data.shards=elsewhere"]
    )
    assert identity_hash(same, "fingerprint") == plain
    for word in ("train.seed=1", "train.batch_size=64", "optim.lr_g=1e-3", "data.flip=true"):
        assert identity_hash(load_config(None, [word]), "fingerprint") != plain
    assert identity_hash(Config(), "other") != plain


def test_every_setting_has_a_sentence() -> None:
    """Descriptions end with a full stop; names are those of the values."""
    fields = dict(flat_fields())
    assert list(fields) == list(flat_values(Config()))
    assert all(field.description.endswith(".") for field in fields.values())
