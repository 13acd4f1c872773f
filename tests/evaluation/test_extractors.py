"""Extractors give the same features for the same images, of any size, and say what they need."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from distgan.errors import UserError
from distgan.evaluation.extractors import Inception, RandomConv, detail, fit_images
from distgan.evaluation.probe import Probe, StackedProbe, probe_path
from distgan.evaluation.probe_training import train_probe
from shards.files import cache_folder
from tests.evaluation.sets import ALONE, digits


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (1, 32), (3, 32), (3, 64), (3, 128)])
def test_random_conv_takes_any_image(channels: int, size: int) -> None:
    images = torch.randint(0, 256, (2, channels, size, size), dtype=torch.uint8)
    extractor = RandomConv()
    features, logits = extractor(images)
    assert features.shape == (2, extractor.dim)
    assert features.dtype == torch.float32
    assert logits is None
    assert torch.equal(features, RandomConv()(images).features)


def test_blur_lowers_the_detail() -> None:
    """Brightness does not change it, and neither does a mirror."""
    images = digits()[0][:50]
    blurred = torch.nn.functional.avg_pool2d(images.float(), 3, 1, padding=1).to(torch.uint8)
    assert (detail(blurred) < 0.8 * detail(images)).all()
    assert torch.allclose(detail(images), detail(255 - images.flip(3)))
    assert (detail(torch.full_like(images, 128)) == 0).all()


def test_weights_make_the_version() -> None:
    assert RandomConv().version == RandomConv().version != RandomConv(seed=1).version


def test_features_ignore_autocast_and_leave_no_graph(probe: Probe) -> None:
    images = digits()[0][:4]
    outside = probe(images).features
    with torch.autocast("cpu", torch.bfloat16):
        inside = probe(images).features
    assert torch.equal(outside, inside)
    assert not outside.requires_grad


def test_fitting_repeats_grey_and_averages_areas() -> None:
    checks = torch.tensor([[0, 255], [255, 0]], dtype=torch.uint8).repeat(1, 1, 4, 4)
    assert torch.allclose(
        fit_images(checks, channels=3, size=4), torch.zeros(1, 3, 4, 4), atol=1e-6
    )


def test_the_probe_reads_digits(probe: Probe) -> None:
    assert probe.card.accuracy >= 0.9
    assert probe.card.num_held_out == 179
    assert probe.num_classes == 10


def test_training_a_probe_is_repeatable_and_leaves_randomness_alone() -> None:
    images, labels = digits()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    names = tuple("0123456789")
    versions = {
        train_probe(
            images.__getitem__, labels, class_names=names, dataset_fingerprint="d", width=4, kimg=1
        ).version
        for _ in range(2)
    }
    assert len(versions) == 1
    assert torch.equal(before, torch.get_rng_state())


def test_a_probe_survives_its_file(probe: Probe, tmp_path: Path) -> None:
    probe.save(tmp_path / "deep" / "probe.safetensors")
    loaded = Probe.load(tmp_path / "deep" / "probe.safetensors")
    assert (loaded.card, loaded.version) == (probe.card, probe.version)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["probe.safetensors"]


def test_what_is_no_probe_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="distgan probe"):
        Probe.load(tmp_path / "none.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(UserError, match="is not a probe"):
        Probe.load(tmp_path / "bad.safetensors")


def test_a_probe_needs_two_classes() -> None:
    images, labels = digits()
    with pytest.raises(UserError, match="two classes"):
        train_probe(images.__getitem__, labels * 0, class_names=("0", "1"), dataset_fingerprint="d")


def test_the_cache_lies_where_the_environment_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DISTGAN_CACHE", str(tmp_path))
    assert (
        probe_path("0123456789abcdef-rest") == tmp_path / "probes" / "0123456789abcdef.safetensors"
    )
    monkeypatch.delenv("DISTGAN_CACHE")
    assert cache_folder().name == "distgan"


def test_a_stacked_probe_reads_three_digits(probe: Probe) -> None:
    images, labels = digits()
    stacks = images[:300].view(100, 3, 8, 8)
    stacked = StackedProbe(probe)
    features, logits = stacked(stacks)
    assert features.shape == (100, stacked.dim)
    assert logits is not None
    assert logits.exp().sum(1).allclose(torch.ones(100), atol=1e-4)
    modes = (labels[:300].view(100, 3) * torch.tensor([100, 10, 1])).sum(1)
    assert (logits.argmax(1) == modes).float().mean() > 0.7
    assert stacked.class_names[123] == "123"


def test_a_stack_needs_three_channels(probe: Probe) -> None:
    with pytest.raises(UserError, match="3 channels"):
        StackedProbe(probe)(digits()[0][:2])


def test_a_colour_image_suits_a_grey_probe(probe: Probe) -> None:
    grey = digits()[0][:4]
    assert torch.allclose(
        probe(grey.expand(-1, 3, -1, -1)).features, probe(grey).features, atol=1e-5
    )


def test_inception_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    with pytest.raises(UserError, match=r"distgan\[fid\]"):
        Inception(world=ALONE)


def test_inception_says_which_file_is_missing() -> None:
    pytest.importorskip("torch_fidelity")
    with pytest.raises(UserError, match="no Inception weights at /nowhere"):
        Inception(Path("/nowhere"), world=ALONE)


@pytest.mark.slow
def test_inception_features_are_those_of_torch_fidelity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    monkeypatch.setattr(module, "load_state_dict_from_url", lambda *_, **__: {})
    monkeypatch.setattr(torch.nn.Module, "load_state_dict", lambda *_, **__: None)
    theirs = module.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    torch.save(theirs.state_dict(), tmp_path / "random.pth")
    monkeypatch.undo()
    extractor = Inception(tmp_path / "random.pth", world=ALONE)
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    features, logits = extractor(images)
    assert torch.allclose(features, theirs(images)[0])
    assert logits is not None
    assert (features.shape, logits.shape, extractor.num_classes) == ((2, 2048), (2, 1008), None)


def test_the_version_of_a_probe_is_its_weights(probe: Probe) -> None:
    assert Probe(probe.network, replace(probe.card, accuracy=0.0)).version == probe.version
