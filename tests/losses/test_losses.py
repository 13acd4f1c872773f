"""Losses, penalties, diversity terms and augmentations compared with closed forms."""

import math

import pytest
import torch
from torch.nn import functional

from distgan.config.schema import Loss
from distgan.losses.adversarial import ADVERSARIAL, equilibrium
from distgan.losses.augmentation import (
    AUGMENTATIONS,
    adapt_probability,
    augment,
    color,
    cutout,
    translation,
)
from distgan.losses.diversity import GROUP, feature_distance, mode_seeking
from distgan.losses.penalties import gradient_penalties

LN_2 = math.log(2)
LOGITS = torch.linspace(-3, 3, 7)
OTHERS = LOGITS.flip(0).square() - 2


def test_bce_is_cross_entropy() -> None:
    """The losses are PyTorch's cross-entropy with targets 1 - smoothing, 0 and 1."""
    loss, cross_entropy = ADVERSARIAL["bce"], functional.binary_cross_entropy_with_logits
    torch.testing.assert_close(
        loss.real_loss(LOGITS, 0.1), cross_entropy(LOGITS, torch.full((7,), 0.9))
    )
    torch.testing.assert_close(loss.fake_loss(LOGITS), cross_entropy(LOGITS, torch.zeros(7)))
    torch.testing.assert_close(loss.generator_loss(LOGITS), cross_entropy(LOGITS, torch.ones(7)))


def test_lsgan_is_squared_error_around_zero() -> None:
    """With y = (logit + 1) / 2 and smoothing s: (y - (1 - s))^2, y^2 and (y - 1)^2."""
    loss, y = ADVERSARIAL["lsgan"], (LOGITS + 1) / 2
    torch.testing.assert_close(loss.real_loss(LOGITS, 0.2), (y - 0.8).square().mean())
    torch.testing.assert_close(loss.fake_loss(LOGITS), y.square().mean())
    torch.testing.assert_close(loss.generator_loss(LOGITS), (y - 1).square().mean())


def test_hinge_is_zero_beyond_the_margin() -> None:
    """The losses are max(0, 1 - x), max(0, 1 + x) and -x."""
    loss = ADVERSARIAL["hinge"]
    assert loss.real_loss(LOGITS, 0.0).item() == pytest.approx((4 + 3 + 2 + 1) / 7)
    assert loss.fake_loss(LOGITS).item() == pytest.approx((1 + 2 + 3 + 4) / 7)
    assert loss.generator_loss(LOGITS + 1).item() == pytest.approx(-1)


def test_wasserstein_is_a_difference_of_means() -> None:
    """A constant added to all scores changes neither the loss nor its gradients."""
    loss, reals = ADVERSARIAL["wasserstein"], LOGITS.clone().requires_grad_()
    real_scores, fake_scores = loss.relate(reals + 50, OTHERS + 50)
    total = loss.real_loss(real_scores, 0.0) + loss.fake_loss(fake_scores)
    assert total.item() == pytest.approx((OTHERS.mean() - LOGITS.mean()).item(), abs=1e-4)
    assert (real_scores.mean() + fake_scores.mean()).item() == pytest.approx(0, abs=1e-4)
    total.backward()
    torch.testing.assert_close(reals.grad, torch.full((7,), -1 / 7))


def test_relativistic_compares_pairs() -> None:
    """D minimises softplus(fake - real) and G softplus(real - fake), pair by pair."""
    loss = ADVERSARIAL["relativistic"]
    real_logits, fake_logits = loss.relate(LOGITS, OTHERS)
    total = loss.real_loss(real_logits, 0.0) + loss.fake_loss(fake_logits)
    torch.testing.assert_close(total, functional.softplus(OTHERS - LOGITS).mean())
    torch.testing.assert_close(
        loss.generator_loss(fake_logits), functional.softplus(LOGITS - OTHERS).mean()
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("bce", (2 * LN_2, LN_2)),
        ("lsgan", (0.5, 0.25)),
        ("hinge", (2.0, 0.0)),
        ("wasserstein", (0.0, 0.0)),
        ("relativistic", (LN_2, LN_2)),
    ],
)
def test_equilibrium_is_the_loss_of_equal_logits(name: str, expected: tuple[float, float]) -> None:
    """With and without unrolling, where the reals' part is subtracted."""
    config = Loss.model_construct(adversarial=name)
    assert equilibrium(config) == pytest.approx(expected, abs=1e-12)
    loss, zero = ADVERSARIAL[name], torch.zeros(4)
    on_reals = loss.real_loss(loss.relate(zero, zero)[0], 0.0).item()
    saddle, own = (
        equilibrium(config.model_copy(update={"unroll_steps": 1, "unroll_value": value}))
        for value in ("saddle", "non_saturating")
    )
    assert saddle == pytest.approx((expected[0], -expected[0]), abs=1e-12)
    assert own == pytest.approx((expected[0], expected[1] - on_reals), abs=1e-7)


@pytest.mark.parametrize("name", ["bce", "lsgan"])
def test_equilibrium_of_smoothed_labels_is_the_least_loss_of_equal_logits(name: str) -> None:
    """The discriminator's best logit is no longer zero."""
    loss, smoothing = ADVERSARIAL[name], 0.3
    logits = torch.linspace(-3, 3, 6001, dtype=torch.float64)
    totals = [loss.real_loss(each, smoothing) + loss.fake_loss(each) for each in logits[:, None]]
    least = torch.stack(totals).argmin()
    expected = totals[least].item(), loss.generator_loss(logits[least]).item()
    found = equilibrium(Loss(adversarial=name, label_smoothing=smoothing))
    assert found == pytest.approx(expected, abs=1e-3)


def quadratic(images: torch.Tensor) -> torch.Tensor:
    """Return the logits |x|^2, whose gradient is 2 x."""
    return images.square().flatten(1).sum(1)


def test_penalties_of_a_quadratic_discriminator() -> None:
    """R1 and R2 are 2 E|x|^2 of reals and of fakes, the gradient penalty E(2|x| - 1)^2 between."""
    reals, fakes, mixing = torch.randn(6, 3, 4, 4), torch.randn(6, 3, 4, 4), torch.rand(6)
    weights = {"r1": 1.0, "r2": 0.5, "gradient_penalty": 2.0}
    found = gradient_penalties(quadratic, reals, fakes, mixing, weights=weights)
    torch.testing.assert_close(found["r1"], 2 * quadratic(reals).mean())
    torch.testing.assert_close(found["r2"], quadratic(fakes).mean())
    between = reals + mixing[:, None, None, None] * (fakes - reals)
    expected = 2 * (2 * quadratic(between).sqrt() - 1).square().mean()
    torch.testing.assert_close(found["gradient_penalty"], expected)


@pytest.mark.parametrize("packing", [1, 2, 4])
def test_penalties_measure_the_gradient_by_a_whole_pack(packing: int) -> None:
    """A discriminator with slope 1 in its packs has R1 1/2, and no gradient penalty."""
    direction = torch.nn.functional.normalize(torch.randn(packing * 48), dim=0)
    found = gradient_penalties(
        lambda images: images.unflatten(0, (-1, packing)).flatten(1) @ direction,
        torch.randn(8, 3, 4, 4),
        torch.randn(8, 3, 4, 4),
        torch.rand(8),
        weights={"r1": 1.0, "gradient_penalty": 1.0},
        packing=packing,
    )
    assert found["r1"].item() == pytest.approx(0.5)
    assert found["gradient_penalty"].item() == pytest.approx(0, abs=1e-9)


def test_a_pack_is_mixed_alike() -> None:
    """The gradient penalty's points lie on lines between packs of reals and packs of fakes."""
    points = []

    def record(images: torch.Tensor) -> torch.Tensor:
        points.append(images.detach().flatten())
        return images.unflatten(0, (-1, 2)).flatten(1).sum(1)

    zeros, ones, mixing = torch.zeros(4, 1, 1, 1), torch.ones(4, 1, 1, 1), torch.rand(4)
    gradient_penalties(record, zeros, ones, mixing, weights={"gradient_penalty": 1.0}, packing=2)
    torch.testing.assert_close(points[0], mixing[[0, 0, 2, 2]])


def test_penalty_is_differentiable_by_the_weights() -> None:
    """For logits w x the R1 penalty is w^2 / 2, and its gradient is w."""
    weight, ones = torch.tensor(3.0, requires_grad=True), torch.ones(5, 1, 1, 1)
    penalty = gradient_penalties(
        lambda images: weight * images.flatten(), ones, ones, torch.zeros(5), weights={"r1": 1.0}
    )["r1"]
    penalty.backward()
    assert (penalty.item(), weight.grad.item()) == pytest.approx((4.5, 3.0))


def test_mode_seeking_falls_as_fakes_vary_more() -> None:
    """1 if all fakes are equal, 1/2 if they differ as reals do, and less if they differ more."""
    latents = torch.zeros(2 * GROUP, 4)
    latents[1::2] = 2 / math.sqrt(math.pi)
    reals = torch.zeros(2 * GROUP, 1, 2, 2)
    reals[1::2] = 0.5
    assert mode_seeking(torch.ones_like(reals), reals, latents).item() == pytest.approx(1)
    assert mode_seeking(reals.flip(0), reals, latents).item() == pytest.approx(0.5, abs=1e-6)
    assert mode_seeking(3 * reals, reals, latents).item() == pytest.approx(0.25, abs=1e-6)
    fakes = torch.full_like(reals, 0.1).requires_grad_()
    mode_seeking(fakes, reals, latents).backward()
    assert torch.isfinite(fakes.grad).all()


def test_mode_seeking_sees_a_collapse_within_classes() -> None:
    """Fakes that depend on their labels alone differ from class to class, which is no diversity."""
    labels = torch.arange(4 * GROUP) % 3
    fakes = labels[:, None, None, None].expand(-1, 1, 2, 2) / 2 - 0.5
    reals, latents = torch.rand(4 * GROUP, 1, 2, 2), torch.randn(4 * GROUP, 6)
    assert mode_seeking(fakes, reals, latents, labels).item() == pytest.approx(1)
    assert mode_seeking(fakes, reals, latents).item() < 0.7


def test_mode_seeking_is_a_half_if_fakes_of_a_class_differ_as_its_reals_do() -> None:
    """The distance between classes, which is larger, does not count."""
    labels = torch.arange(2 * GROUP) // 2 % 2
    latents = torch.zeros(2 * GROUP, GROUP)
    latents[torch.arange(2 * GROUP), torch.arange(2 * GROUP) % GROUP] = 1
    latents *= GROUP / 2 * 2 / math.sqrt(math.pi)  # so that all distances in a group are typical
    images = torch.eye(GROUP).repeat(2, 1)[:, None, :, None] + 9 * labels[:, None, None, None]
    term = mode_seeking(images, images, latents, labels)
    assert term.item() == pytest.approx(0.5, abs=1e-6)


def test_mode_seeking_is_zero_if_all_labels_differ() -> None:
    """No two images can be compared, and no gradient flows to them."""
    fakes = torch.rand(GROUP, 1, 2, 2, requires_grad=True)
    reals, latents = torch.rand(GROUP, 1, 2, 2), torch.randn(GROUP, 4)
    term = mode_seeking(fakes, reals, latents, torch.arange(GROUP))
    term.backward()
    assert term.item() == 0
    assert torch.equal(fakes.grad, torch.zeros_like(fakes))


def test_feature_distance_is_zero_from_the_distance_of_reals_on() -> None:
    """1 if all fakes are equal, 1/2 at half the distance of reals, 0 at larger distances."""
    reals = torch.randn(3 * GROUP, 5)
    assert feature_distance(torch.zeros_like(reals), reals).item() == pytest.approx(1, abs=1e-3)
    assert feature_distance(2 * reals, reals).item() == 0
    assert feature_distance(reals / 2, reals).item() == pytest.approx(0.5, abs=1e-3)


def test_groups_do_not_depend_on_the_split() -> None:
    """The term of a batch is the mean of the terms of its halves, on two ranks say."""
    draw = torch.Generator().manual_seed(0)
    fakes, reals = torch.rand(2, 4 * GROUP, 3, 4, 4, generator=draw)
    latents, half = torch.randn(4 * GROUP, 6, generator=draw), 2 * GROUP
    for whole, parts in (
        (
            mode_seeking(fakes, reals, latents),
            [
                mode_seeking(fakes[s], reals[s], latents[s])
                for s in (slice(half), slice(half, None))
            ],
        ),
        (
            feature_distance(fakes.flatten(1), reals.flatten(1)),
            [
                feature_distance(fakes[s].flatten(1), reals[s].flatten(1))
                for s in (slice(half), slice(half, None))
            ],
        ),
    ):
        torch.testing.assert_close(whole, torch.stack(parts).mean())


def test_groups_with_labels_do_not_depend_on_the_split() -> None:
    """Also if the parts have different numbers of images with equal labels."""
    draw = torch.Generator().manual_seed(0)
    fakes, reals = torch.rand(2, 4 * GROUP, 3, 4, 4, generator=draw)
    latents = torch.randn(4 * GROUP, 6, generator=draw)
    labels = torch.randint(0, 5, (4 * GROUP,), generator=draw)
    labels[:GROUP] = torch.arange(GROUP)
    whole = mode_seeking(fakes, reals, latents, labels)
    parts = [
        mode_seeking(*part)
        for part in zip(*(each.chunk(2) for each in (fakes, reals, latents, labels)), strict=True)
    ]
    torch.testing.assert_close(whole, torch.stack(parts).mean())


def test_translation_moves_whole_images() -> None:
    """Images shift by the drawn pixels, up to an eighth of the side; zeros fill the gap."""
    images = torch.rand(3, 2, 16, 16)
    draws, chosen = (
        torch.tensor([[0.0, 0.99], [0.99, 0.5], [0.0, 0.0]]),
        torch.tensor([True, True, False]),
    )
    moved = translation(images, draws, chosen)
    expected = torch.zeros(2, 16, 16)
    expected[:, :-2, 2:] = images[0, :, 2:, :-2]
    torch.testing.assert_close(moved[0], expected)
    torch.testing.assert_close(moved[1, :, 2:], images[1, :, :-2])
    torch.testing.assert_close(moved[2], images[2])


def test_cutout_blanks_a_square_of_half_the_side() -> None:
    """A central square covers a quarter of the image; images that were not chosen stay the same."""
    images = torch.ones(2, 1, 8, 8)
    cut = cutout(images, torch.full((2, 2), 0.5), torch.tensor([True, False]))
    assert cut.sum((1, 2, 3)).tolist() == [48, 64]
    assert cut[0, 0, 2:6, 2:6].sum() == 0


def test_translation_moves_each_axis_of_an_oblong_image() -> None:
    """The largest shifts of 32x48 pixels are 4 rows and 6 columns."""
    images = torch.rand(1, 1, 32, 48)
    moved = translation(images, torch.full((1, 2), 0.99), torch.tensor([True]))
    torch.testing.assert_close(moved[..., 4:, 6:], images[..., :-4, :-6])
    assert not moved[..., :4, :].any() and not moved[..., :6].any()


def test_cutout_blanks_half_of_each_axis_of_an_oblong_image() -> None:
    """A central hole in 8x12 pixels has 4 rows and 6 columns."""
    cut = cutout(torch.ones(1, 1, 8, 12), torch.full((1, 2), 0.5), torch.tensor([True]))
    assert cut.sum() == 8 * 12 - 4 * 6
    assert cut[..., 2:6, 3:9].sum() == 0


def test_color_changes_only_chosen_images() -> None:
    """Neutral draws change nothing; brightness adds up to 0.5 to the images that were chosen."""
    images = torch.rand(2, 3, 4, 4)
    chosen = torch.tensor([True, False])
    torch.testing.assert_close(color(images, torch.full((2, 3), 0.5), chosen), images)
    brighter = color(images, torch.tensor([[1.0, 0.5, 0.5]] * 2), chosen)
    torch.testing.assert_close(brighter, images + torch.tensor([0.5, 0.0])[:, None, None, None])


def test_augmentation_depends_on_the_position_and_is_differentiable() -> None:
    """An image is augmented equally in any batch; gradients pass; probability 0 does nothing."""
    images, positions = torch.rand(6, 3, 16, 16, requires_grad=True), torch.arange(6)
    settings = {"kinds": tuple(AUGMENTATIONS), "seed": 0, "purpose": "test"}
    whole = augment(images, positions, probability=torch.tensor(1.0), **settings)
    part = augment(images[2:4], positions[2:4], probability=torch.tensor(1.0), **settings)
    torch.testing.assert_close(whole[2:4], part)
    whole.sum().backward()
    assert images.grad.abs().sum() > 0
    torch.testing.assert_close(
        augment(images, positions, probability=torch.tensor(0.0), **settings), images
    )


def test_probability_follows_the_accuracy_on_reals() -> None:
    """It rises while the accuracy is above the target, falls otherwise, and stays in [0, 1]."""
    settings = {"target": 0.6, "images": 100, "ramp_kimg": 1.0}
    half = torch.tensor(0.5)
    assert adapt_probability(half, torch.tensor(0.95), **settings).item() == pytest.approx(0.6)
    assert adapt_probability(half, torch.tensor(0.75), **settings).item() == pytest.approx(0.4)
    assert adapt_probability(torch.tensor(0.0), torch.tensor(0.5), **settings).item() == 0
