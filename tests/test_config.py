"""Settings: which layer wins, errors, registries, round trips through TOML."""

import tomllib
import typing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distgan.config.flat import (
    flat_fields,
    flat_values,
    identity_hash,
    to_overrides,
    to_toml,
    toml_value,
)
from distgan.config.load import load_config, preset_names, with_overrides
from distgan.config.schema import Config, Loss, Networks, Optim, total_images
from distgan.errors import UserError
from distgan.losses.adversarial import ADVERSARIAL
from distgan.losses.augmentation import AUGMENTATIONS
from distgan.losses.penalties import PENALTIES
from distgan.networks.build import DISCRIMINATORS, GENERATORS
from distgan.optimizers import OPTIMIZERS, SCHEDULES
from distgan.run.preflight import check_batch
from distgan.runtime.distributed import World


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_read_back_from_its_config_file(name: str, tmp_path: Path) -> None:
    """A shipped preset is valid, and the TOML written for it gives the same settings."""
    config = load_config(name)
    (tmp_path / "config.toml").write_text(to_toml(config))
    assert load_config(str(tmp_path / "config.toml")) == config


@settings(deadline=None)
@given(text=st.text(), classes=st.lists(st.text(), max_size=3))
def test_any_text_is_read_back_from_the_config_file(text: str, classes: list[str]) -> None:
    """Emoji, quotes, backslashes, control characters and line ends survive TOML and overrides."""
    config = Config.model_validate(
        {
            "data": {"shards": text, "classes": classes},
            "log": {"project": text + ".", "group": text},
        }
    )
    shown = config.model_copy(
        update={
            "data": config.data.model_copy(update={"shards": flat_values(config)["data.shards"]})
        }
    )
    assert Config.model_validate(tomllib.loads(to_toml(config))) == shown
    values = {"log.group": text, "log.project": text + ".", "data.classes": classes}
    written = flat_values(load_config(None, to_overrides(values)))
    assert {name: written[name] for name in values} == values


@pytest.mark.parametrize(
    "text", ["a\u00a0b", "\u202f", "a\\b", "two\nlines", "'\"", "\U0001f98a", "\x7f"]
)
def test_the_folder_of_the_data_is_taken_literally(text: str) -> None:
    """`--data` is a path, not TOML."""
    assert load_config(None, ["data.shards=other"], data=text).data.shards == text
    assert tomllib.loads(f"x = {toml_value(text)}") == {"x": text}


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("--batch-size", "train.batch_size=..."),
        ("--lr=1e-4", "optim.lr_g=... and optim.lr_d=..."),
        ("--epochs", "train.epochs=..."),
        ("--run_dirr", "did you mean --run-dir?"),
        ("--resume", "repeat the command to resume"),
    ],
)
def test_options_of_other_programs_are_answered_with_the_setting(word: str, expected: str) -> None:
    """`--batch-size 64` is train.batch_size=64 here."""
    with pytest.raises(UserError) as error:
        load_config(None, [word, "64"])
    assert expected in str(error.value)


def test_an_override_is_one_value(tmp_path: Path) -> None:
    """A text that happens to be TOML of several lines is a text."""
    assert load_config(None, ["log.group='a'\nb = 1"]).log.group == "'a'\nb = 1"


def test_the_password_of_a_url_is_used_but_not_stored() -> None:
    """A remedy changes settings and keeps the URL; the config file has no secrets."""
    config = load_config(None, data="https://user:secret@host/shards")
    assert with_overrides(config, ["loss.label_smoothing=0.1"]).data == config.data
    assert "secret" in str(config.data.shards)
    assert "secret" not in to_toml(config)


def test_later_layers_win_and_lengths_replace_each_other() -> None:
    """Default < preset < command line; `train.kimg` replaces the preset's epochs and vice versa."""
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
    ("override", "expected"),
    [
        ("train.bach_size=3", "unknown setting 'train.bach_size'; did you mean train.batch_size?"),
        ("trian.kimg=2", "unknown setting 'trian.kimg'; did you mean train.kimg?"),
        ("evaluatoin.every_kimg=2", "did you mean evaluation.every_kimg?"),
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
def test_mistakes_are_one_line_with_value_and_remedy(override: str, expected: str) -> None:
    """The error says what is wrong, the value, and what to type."""
    with pytest.raises(UserError) as caught:
        load_config(None, [override])
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_preset_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """The error for an unknown name lists the presets; broken and missing files are named."""
    (tmp_path / "broken.toml").write_text("[train")
    for preset, expected in (
        ("cifr10", "choose from"),
        ("nowhere.toml", "nowhere.toml"),
        (str(tmp_path / "broken.toml"), "not valid TOML"),
    ):
        with pytest.raises(UserError, match=expected):
            load_config(preset)


def test_choices_of_settings_are_the_keys_of_registries() -> None:
    """Each choice has an entry in its registry, and each entry is a choice."""
    for section, field, registry in (
        (Networks, "architecture", GENERATORS),
        (Networks, "architecture", DISCRIMINATORS),
        (Loss, "adversarial", ADVERSARIAL),
        (Optim, "name", OPTIMIZERS),
        (Optim, "schedule", SCHEDULES),
    ):
        assert set(typing.get_args(section.model_fields[field].annotation)) == set(registry)
    assert set(PENALTIES) < set(Loss.model_fields)
    kinds = typing.get_args(Loss.model_fields["augment"].annotation)[0]
    assert set(typing.get_args(kinds)) == set(AUGMENTATIONS)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["loss.r1=1"], "add networks.discriminator_norm=none"),
        (["loss.label_smoothing=0.1", "loss.adversarial=hinge"], "use it with bce or lsgan"),
        (
            ["loss.augment_target=0.6"],
            """set 'loss.augment=["color","translation","cutout"]' too""",
        ),
        (["loss.augment=blur"], "loss.augment='blur': input should be a valid tuple"),
        (
            ['loss.augment=["blur"]'],
            "loss.augment.0='blur': input should be 'color', 'translation' or 'cutout'",
        ),
        (["collapse.remedy=['optim.name=sgd']"], "a rollback can change settings of loss"),
        (["collapse.remedy=['loss.r1=1']"], "collapse.remedy: loss.r1, loss.r2 and"),
        (
            ["networks.discriminator_init=he", "networks.architecture=resnet"],
            "discriminator_init=he works with networks.architecture=dcgan only",
        ),
        (["networks.discriminator_init=he"], "add networks.discriminator_norm=none"),
        (["networks.minibatch_stddev=1"], "use 4, or 0"),
        (
            [
                "loss.adversarial=wasserstein",
                "networks.discriminator_norm=none",
                "loss.augment=['color']",
                "loss.augment_target=0.6",
            ],
            "set a fixed loss.augment_probability",
        ),
        (["networks.max_width=99", "networks.architecture=resnet"], "not with resnet"),
        (
            ["networks.discriminator_refinements=1", "networks.architecture=resnet"],
            "not with resnet",
        ),
        (["networks.generator_refinements=1", "networks.architecture=resnet"], "not with resnet"),
        ([f"train.batch_size={10**400}"], "00: is too large"),
        (["loss.diversity.mode_seking=1"], "did you mean loss.diversity.mode_seeking?"),
    ],
)
def test_contradicting_settings_are_refused(overrides: list[str], expected: str) -> None:
    """The error comes with the settings, before anything starts, and says what to type instead."""
    with pytest.raises(UserError) as caught:
        load_config(None, overrides)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "fitting"),
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
def test_a_batch_must_hold_whole_groups(overrides: list[str], fitting: str) -> None:
    """With two processes. The error names batch sizes that fit."""
    with pytest.raises(UserError, match=fitting.replace("(", r"\(").replace(")", r"\)")):
        check_batch(load_config(None, overrides), World(0, 2))
    config = load_config(None, [*overrides, "train.batch_size=64"])
    check_batch(config, World(0, 2))


def test_a_folder_whose_name_cannot_be_written_down_is_refused() -> None:
    """config.toml is UTF-8."""
    with pytest.raises(UserError, match=r"this name is not UTF-8; rename the folder"):
        load_config(None, data="shards\udcff")


def test_identity_depends_on_what_changes_the_weights() -> None:
    """Seed, batch size and dataset change it; length, logging and checkpoints do not."""
    plain = identity_hash(Config(), "fingerprint")
    same = load_config(
        None, ["train.kimg=9", "log.every_kimg=1", "checkpoint.keep=9", "data.shards=elsewhere"]
    )
    assert identity_hash(same, "fingerprint") == plain
    for override in ("train.seed=1", "train.batch_size=64", "optim.lr_g=1e-3", "data.flip=true"):
        assert identity_hash(load_config(None, [override]), "fingerprint") != plain
    assert identity_hash(Config(), "other") != plain


def test_every_setting_has_a_sentence() -> None:
    """Each ends with a full stop; the documented names are those of the values."""
    fields = dict(flat_fields())
    assert list(fields) == list(flat_values(Config()))
    assert all(field.description.endswith(".") for field in fields.values())
