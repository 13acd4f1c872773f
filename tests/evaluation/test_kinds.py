"""Kinds of images are found without labels, and missing ones are counted."""

import torch
from torch import Tensor

from distgan.evaluation.extractors import Extracted, mirrored, thumbnails
from distgan.evaluation.kinds import find_kinds, kind_shares, missing_kinds
from distgan.evaluation.reference import prepare_reference
from tests.evaluation.sets import (
    ALONE,
    NUM,
    SETTINGS,
    ExampleClassifier,
    controlled_sets,
    cut,
    digits,
    score,
)


def test_clusters_are_kinds_and_those_without_images_are_missing() -> None:
    draw = torch.Generator().manual_seed(0)
    middles = 10 * torch.eye(8)
    reals = middles.repeat(50, 1) + torch.randn(400, 8, generator=draw)
    centres = find_kinds(reals, ALONE)
    shares = kind_shares(reals, centres, ALONE)
    assert shares.sum() == 1
    assert missing_kinds(shares, shares * 400, below=0.1) == 0
    few = kind_shares(reals[(torch.arange(400) % 8) < 4], centres, ALONE)
    num_empty = int(((few == 0) & (shares * 400 >= 10)).sum())
    assert missing_kinds(few, shares * 400, below=0.1) >= num_empty > 1


def test_few_images_have_one_kind_of_which_none_is_missing() -> None:
    reals = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
    centres = find_kinds(reals, ALONE)
    assert centres.shape == (1, 4)
    assert missing_kinds(torch.zeros(1), torch.tensor([9.0]), below=0.1) == 0


def test_kinds_of_digits_are_missed_by_half_of_the_digits_alone() -> None:
    sets, reals = controlled_sets()
    images, labels, _ = cut(*digits())
    sets["one class"] = images[labels == 3].repeat(9, 1, 1, 1)[:NUM]
    extractor = ExampleClassifier()
    prepared = prepare_reference(reals, extractor, world=ALONE, num_samples=NUM, settings=SETTINGS)
    found = {
        name: score(sets[name], prepared, extractor).values
        for name in ("all classes", "half of the classes", "one class")
    }
    for metric in ("diversity/missing_kinds", "diversity/missing_pixel_kinds"):
        missing = {name: values[metric] for name, values in found.items()}
        assert missing["all classes"] == 0
        assert missing["one class"] > missing["half of the classes"] >= 2


def test_mirrored_copies_are_copies_in_features_that_ignore_sides() -> None:
    class BothSides(ExampleClassifier):
        """Pixels of an image plus those of its mirror image."""

        name = "both sides"

        def extract(self, images: Tensor) -> Extracted:
            features, logits = super().extract(images)
            return Extracted(features + super().extract(images.flip(3)).features, logits)

    sets, reals = controlled_sets()
    extractor = BothSides()
    prepared = prepare_reference(reals, extractor, world=ALONE, num_samples=NUM, settings=SETTINGS)
    copies = score(sets["copies"].flip(3), prepared, extractor)
    assert copies.values["diversity/confirmed_copies"] > 0.9
    others = score(sets["all classes"], prepared, extractor)
    assert others.values["diversity/confirmed_copies"] < 0.1


def test_a_mirrored_thumbnail_is_that_of_the_mirrored_image() -> None:
    images = torch.randint(0, 256, (3, 3, 32, 32), generator=torch.Generator().manual_seed(0)).to(
        torch.uint8
    )
    assert torch.allclose(mirrored(thumbnails(images)), thumbnails(images.flip(3)), atol=1e-6)
