"""Whole steps on a GPU that does not exist: all on the device, no wait for it, few launches."""

import itertools
from typing import Any

from distgan.config.load import preset_names
from tests.without_gpu.fake_device import run_cases
from tests.without_gpu.mistakes import messages
from tests.without_gpu.processes import run_recipe

Case = dict[str, Any]

# Launches of a step, and of one with gradient penalties if the preset has them. A step of a small
# network takes as long as its launches, so more of them are a slower run.
LAUNCHES: list[tuple[Case, int]] = [
    ({"preset": "digits", "channels": 1}, 205),
    ({"preset": "cifar10"}, 205),
    ({"preset": "classic", "size": 64}, 244),
    ({"preset": "cifar10-strong", "compare": True}, 338),
    ({"preset": "cifar10-strong", "penalty": True}, 503),
    ({"preset": "cifar10-conditional"}, 292),
    ({"preset": "stacked-mnist"}, 296),
    ({"preset": "anime-faces", "size": 64}, 244),
    ({"preset": "anime-faces-strong", "size": 64}, 368),
    ({"preset": "anime-faces-strong", "size": 64, "penalty": True}, 547),
    ({"preset": "anime-faces-conditional", "size": 64, "penalty": True}, 514),
]

# Operations whose Python numbers change from step to step. A CUDA graph of the step would repeat
# those of its capture: which row of the latents drawn ahead, the weight of the moving average, and
# the learning rate. Everything else that changes has to be in tensors.
VARYING = {"select", "_foreach_lerp_", "_fused_adam_"}

SPECTRAL = ["networks.discriminator_norm=spectral"]
# Every remedy once; those that can be combined are, since each case takes a second.
REMEDIES: list[Case] = [
    {
        "precision": "no",
        "words": ["optim.name=adamw", "loss.diversity.mode_seeking=1", "networks.packing=2"],
    },
    {
        "precision": "fp16",
        "words": [
            "optim.name=rmsprop", "train.accumulate=2", "loss.diversity.feature_distance=1",
        ],
    },
    {"words": ["optim.name=sgd", "train.d_steps=2", "optim.lookahead_steps=1"]},
    {
        "words": [*SPECTRAL, "loss.adversarial=wasserstein", "loss.gradient_penalty=1"],
        "penalty": True,
    },
    {
        "words": [
            "loss.adversarial=relativistic", "networks.minibatch_stddev=4",
            'loss.augment=["color","translation","cutout"]', "loss.augment_target=0.6",
        ],
    },
    {"words": ["networks.architecture=resnet", "networks.discriminator_norm=none"]},
    {
        "words": [
            "loss.unroll_steps=1", "networks.discriminator_norm=none", "networks.condition=class",
            "networks.conditional_start_kimg=1", "loss.diversity.feature_distance=1",
        ],
    },
    {"words": ["loss.unroll_steps=2", "loss.unroll_optimizer=sgd"]},
]  # fmt: skip


def test_a_step_of_every_preset_stays_on_the_device() -> None:
    """One copy to the device, the numbers of the images, and no more launches than today."""
    cases = [case for case, _ in LAUNCHES]
    assert {case["preset"] for case in cases} == set(preset_names())
    results = run_recipe(run_cases, cases)
    for (case, limit), result in zip(LAUNCHES, results, strict=True):
        assert "error" not in result, (case, result)
        assert result["devices"] == ["nogpu"], case
        assert result["gradients"] == ["torch.float32"], case
        assert result["copies"] == {"_to_copy": 1}, case
        assert sum(result["kernels"].values()) <= limit, (case, result["kernels"])
        check_cost(result["cost"])
        assert set(result["varying"]) <= VARYING, case
    cost = results[1]["cost"]
    assert cost["flops"] == 128 * cifar10_flops_per_image()


def check_cost(cost: dict[str, Any]) -> None:
    """Compare an estimate with what any step of these networks needs at least and at most."""
    generator, discriminator = cost["reduced_bytes"]
    # Weights, gradients and both moments of Adam, and the averaged generator.
    state = 4 * (generator + discriminator) + generator
    assert state < cost["peak_bytes"] < state + cost["num_bytes"]
    least_ms = cost["num_bytes"] / 3350e9 * 1e3, cost["flops"] / 989.4e12 * 1e3
    assert max(least_ms) <= cost["roofline_ms"]["H100 SXM"] * (1 + 1e-9)
    assert cost["roofline_ms"]["H100 SXM"] < cost["roofline_ms"]["T4"]


def cifar10_flops_per_image() -> int:
    """Return the FLOPs of a step of the preset, from its networks' layers.

    A layer's backward needs its forward's FLOPs once for its input and once for its weight. The
    discriminator sees reals and fakes, with a backward to its weights, and fakes once more, with a
    backward to the images. No gradient flows to reals or latents.
    """
    channels, size = [3, 64, 128, 256], 32
    layers = []
    for before, after in itertools.pairwise(channels):
        size //= 2
        layers.append(2 * before * after * 4 * 4 * size**2)
    discriminator = sum(layers) + 2 * 4096
    projection = 2 * 100 * 4096
    generator = sum(layers) + projection
    return 8 * discriminator - 2 * layers[0] + 3 * generator - projection


def test_a_step_of_every_remedy_stays_on_the_device() -> None:
    """No number is read, for which the host would wait, and no operation mixes devices."""
    cases = [{"preset": "cifar10"} | remedy for remedy in REMEDIES]
    results = run_recipe(run_cases, cases)
    failed = [(c, r["error"]) for c, r in zip(cases, results, strict=True) if "error" in r]
    assert failed == []
    assert all(result["devices"] == ["nogpu"] for result in results)


def test_reading_a_number_and_mixing_devices_are_detected() -> None:
    """The two mistakes that the other tests rely on finding."""
    found = run_recipe(messages)
    assert "DataDependentOutputException" in found["reading a number"]
    assert "device" in found["mixing devices"]
