"""Metrics equal their closed forms, and other implementations if these are installed."""

import math

import pytest
import torch
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from distgan.evaluation import distances, modes, neighbours
from distgan.evaluation.batch_diversity import BatchDiversity
from distgan.evaluation.distances import Moments
from tests.evaluation.sets import ALONE


def normal(num: int, dim: int, seed: int, *, shift: float = 0.0) -> Tensor:
    return torch.randn(num, dim, generator=torch.Generator().manual_seed(seed)) + shift


X, Y = normal(300, 16, 0), normal(320, 16, 1, shift=0.3)


def fidelity(fakes: Tensor, reals: Tensor) -> neighbours.Fidelity:
    near_fakes, near_reals = (
        neighbours.neighbour_distances(each, 5, ALONE) for each in (fakes, reals)
    )
    return neighbours.fidelity(
        fakes,
        reals,
        ALONE,
        fake_radii=near_fakes[:, 2],
        real_radii=near_reals[:, 2],
        real_radii_wide=near_reals[:, 4],
    )


def test_frechet_of_commuting_normals() -> None:
    a = Moments(torch.zeros(3).double(), torch.diag(torch.tensor([1.0, 4.0, 0.0])).double())
    b = Moments(torch.ones(3).double(), torch.diag(torch.tensor([9.0, 1.0, 0.0])).double())
    assert distances.frechet_distance(a, b) == pytest.approx(3 + (1 - 3) ** 2 + (2 - 1) ** 2)


def test_frechet_of_a_set_with_itself_is_zero_even_when_singular() -> None:
    few = distances.moments(normal(5, 16, 0), ALONE)
    assert distances.frechet_distance(few, few) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("sizes", [(20, 30), (300, 30), (300, 320), (2, 2)])
def test_frechet_of_few_images_equals_that_of_moments(sizes: tuple[int, int]) -> None:
    """Whether there are fewer images than features or more."""
    sets = (normal(sizes[0], 40, 2), normal(sizes[1], 40, 3, shift=0.3))
    by_moments = distances.frechet_distance(*(distances.moments(each, ALONE) for each in sets))
    assert distances.frechet_of_sets(*sets) == pytest.approx(by_moments, rel=1e-6)


def test_frechet_of_few_images_needs_no_matrix_of_all_features(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two eigendecompositions of 2048 Inception features take many seconds for each class."""
    monkeypatch.delattr(torch.linalg, "eigh")
    assert distances.frechet_of_sets(normal(9, 2048, 2), normal(9, 2048, 3)) > 0


def test_moments_keep_their_digits_far_from_zero() -> None:
    far = distances.moments(X.double() + 1e6, ALONE).covariance
    assert torch.allclose(far, torch.cov(X.double().T), atol=1e-6)


def test_kernel_distance_is_unbiased_around_zero_and_grows() -> None:
    mean, spread = distances.kernel_distance(
        normal(400, 8, 2), normal(400, 8, 3), ALONE, num_subsets=20
    )
    assert abs(mean) < 3 * spread
    assert distances.kernel_distance(normal(400, 8, 2), normal(400, 8, 3, shift=1), ALONE)[0] > 0.5


def test_vendi_counts_equal_directions() -> None:
    assert distances.vendi_score(torch.eye(6).repeat(4, 1), ALONE) == pytest.approx(6)
    assert distances.vendi_score(torch.ones(9, 6), ALONE) == pytest.approx(1)


def test_inception_score_counts_sure_classes() -> None:
    assert distances.inception_score(
        1e3 * torch.eye(5).repeat(20, 1), num_splits=2
    ) == pytest.approx(5)
    assert distances.inception_score(torch.zeros(20, 5)) == pytest.approx(1)


def test_neighbours_are_those_of_scikit_learn() -> None:
    expected = NearestNeighbors(n_neighbors=6).fit(X.numpy()).kneighbors(X.numpy())[0][:, 1:]
    assert torch.allclose(
        neighbours.neighbour_distances(X, 5, ALONE).sqrt(),
        torch.from_numpy(expected).double(),
        atol=1e-5,
    )
    distance, index = neighbours.nearest(Y, X, ALONE)
    expected, found = NearestNeighbors(n_neighbors=1).fit(X.numpy()).kneighbors(Y.numpy())
    assert index.tolist() == found[:, 0].tolist()
    assert torch.allclose(distance.sqrt(), torch.from_numpy(expected[:, 0]).double(), atol=1e-5)


def test_blocks_do_not_change_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = neighbours.neighbour_distances(X, 5, ALONE)
    monkeypatch.setattr(neighbours, "BLOCK_ELEMENTS", 7 * len(X))
    assert torch.allclose(whole, neighbours.neighbour_distances(X, 5, ALONE))


def test_a_set_covers_itself_and_nothing_far_away() -> None:
    same, far = fidelity(X, X), fidelity(X + 100, X)
    assert (same.precision, same.recall, same.coverage) == (1, 1, 1)
    assert (far.precision, far.recall, far.density, far.coverage) == (0, 0, 0, 0)


def test_coverage_of_one_distribution_is_near_its_expectation() -> None:
    assert fidelity(normal(1000, 4, 5), normal(1000, 4, 6)).coverage == pytest.approx(
        1 - 2**-5, abs=0.02
    )


def test_copies_are_as_close_as_can_be_and_others_are_not() -> None:
    radii = neighbours.neighbour_distances(X, 5, ALONE)[:, 4]
    assert neighbours.relative_distances(X[:10] + 1e-4, X, radii, ALONE)[0].max() < 1e-6
    assert neighbours.relative_distances(Y, X, radii, ALONE)[0].min() > 0.01


def test_modes_and_reverse_kl() -> None:
    even, one = torch.full((10,), 0.1), torch.tensor([500] + 9 * [0])
    assert modes.modes_captured(one) == 1
    assert modes.reverse_kl(one, even) == pytest.approx(math.log(10))
    assert modes.reverse_kl(torch.full((10,), 7), even) == pytest.approx(0)
    assert modes.effective_classes(even) == pytest.approx(10)
    assert modes.missing_classes(torch.tensor([500, 495, 5]), torch.full((3,), 1 / 3)) == [2]


def test_reverse_kl_of_a_perfect_generator_is_at_its_floor() -> None:
    labels = torch.randint(1000, (26_000,), generator=torch.Generator().manual_seed(0))
    found = modes.reverse_kl(modes.class_histogram(labels, 1000), torch.full((1000,), 1e-3))
    assert found == pytest.approx(modes.reverse_kl_floor(1000, 26_000), rel=0.15)


def test_only_sure_images_count_for_missing_classes() -> None:
    posteriors = torch.tensor(
        [[0.9, 0.1, 0.0], [0.4, 0.6, 0.0], [0.2, 0.8, 0.0], [0.95, 0.05, 0.0]]
    )
    counts = modes.confident_counts(posteriors.log(), confidence=0.7)
    assert counts.tolist() == [2, 1, 0]
    assert modes.shares_of(counts).tolist() == pytest.approx([2 / 3, 1 / 3, 0])
    assert modes.shares_of(modes.confident_counts(torch.zeros(5, 3))).tolist() == [0, 0, 0]


def test_classes_that_chance_may_miss_are_not_missing() -> None:
    """Of 200 classes in equal use, a few confident images miss many, which means nothing."""
    equal, draw = torch.full((200,), 1 / 200), torch.Generator().manual_seed(0)
    for num in (0, 200, 2000, 20_000):
        labels = torch.randint(200, (num,), generator=draw)
        assert modes.missing_classes(modes.class_histogram(labels, 200), equal) == []


def test_frechet_kernel_and_fidelity_equal_torch_fidelity() -> None:
    pytest.importorskip("torch_fidelity")
    from torch_fidelity import metric_fid, metric_isc, metric_kid, metric_prc

    stats = [metric_fid.fid_features_to_statistics(each) for each in (X, Y)]
    theirs = metric_fid.fid_statistics_to_metric(*stats, verbose=False)[
        "frechet_inception_distance"
    ]
    ours = distances.frechet_distance(distances.moments(X, ALONE), distances.moments(Y, ALONE))
    assert ours == pytest.approx(theirs, rel=1e-5)

    kid = metric_kid.kid_features_to_metric(
        X, Y[:300], kid_subsets=1, kid_subset_size=300, verbose=False
    )
    assert float(distances.squared_mmd(X.double(), Y[:300].double())) == pytest.approx(
        kid["kernel_inception_distance_mean"], rel=1e-4
    )
    prc = metric_prc.prc_features_to_metric(X, Y, prc_neighborhood=3, verbose=False)
    found = fidelity(X, Y)
    assert (found.precision, found.recall) == pytest.approx((prc["precision"], prc["recall"]))

    isc = metric_isc.isc_features_to_metric(X, splits=5, shuffle=False)["inception_score_mean"]
    assert distances.inception_score(X, num_splits=5) == pytest.approx(isc, rel=1e-5)


def test_fidelity_equals_prdc() -> None:
    prdc = pytest.importorskip("prdc")
    theirs = prdc.compute_prdc(real_features=Y.numpy(), fake_features=X.numpy(), nearest_k=5)
    narrow = prdc.compute_prdc(real_features=Y.numpy(), fake_features=X.numpy(), nearest_k=3)
    found = fidelity(X, Y)
    assert (found.density, found.coverage) == pytest.approx((theirs["density"], theirs["coverage"]))
    assert (found.precision, found.recall) == pytest.approx((narrow["precision"], narrow["recall"]))


def test_batch_diversity_compares_with_reals() -> None:
    draw = torch.Generator().manual_seed(0)
    reals = torch.rand(128, 3, 32, 32, generator=draw) * 2 - 1
    diversity = BatchDiversity.of_reals(reals)
    alike = {name: float(value) for name, value in diversity.metrics(reals[64:]).items()}
    assert abs(alike["diversity/batch_ratio"] - 1) < 0.05
    assert alike["diversity/batch_duplicates"] < 0.1
    one = {
        name: float(value)
        for name, value in diversity.metrics(reals[:1].repeat(64, 1, 1, 1)).items()
    }
    assert one["diversity/batch_ratio"] < 0.01
    assert one["diversity/batch_duplicates"] == 1
