"""Length and learning rate of the training of a probe.

The rate rises, stays constant until the held-out accuracy stops improving, and then falls to zero.
Unlike a schedule of a fixed length, this one can end at any time and still end well.
"""

from dataclasses import dataclass, field

MOST_IMAGES = 150_000  # at the constant rate
GOOD_ACCURACY = 0.98  # high enough to begin the cool-down
BETTER = 0.005  # an accuracy is better than an earlier one if it is higher by more than this
PATIENCE = 0.4  # without a better accuracy in this part of the images so far, more does not help
FEWEST_CHECKS = 4
CHECK_EVERY = 8_000  # images
WARM_UP = 5_000  # images
COOL_DOWN = 0.4  # images of the cool-down, as a fraction of those before it


@dataclass
class ProbeSchedule:
    """The progress of a training, counted in images, from which its rate and its end follow."""

    longest: int  # images before the cool-down, at most
    images: int = 0
    checks: list[tuple[int, float]] = field(default_factory=list)  # images, held-out accuracy
    cooling_from: int | None = None
    shortened_end: int | None = None  # if less time is left than the cool-down usually takes

    @classmethod
    def of_length(cls, kimg: float | None) -> "ProbeSchedule":
        """Return a schedule of at most `kimg` thousand images; None means the usual limit."""
        return cls(MOST_IMAGES if kimg is None else max(1, round(1000 * kimg / (1 + COOL_DOWN))))

    @property
    def end(self) -> int:
        """Images at the end of the training, at the latest."""
        if self.shortened_end is not None:
            return self.shortened_end
        start = self.longest if self.cooling_from is None else self.cooling_from
        return start + round(COOL_DOWN * start)

    @property
    def images_if_cooling_now(self) -> int:
        """Images that are left if the cool-down begins now, or has begun."""
        if self.cooling_from is None:
            return round(COOL_DOWN * self.images)
        return self.end - self.images

    @property
    def is_complete(self) -> bool:
        return self.cooling_from is not None and self.images >= self.end

    @property
    def factor(self) -> float:
        """Factor on the learning rate of the next step, in (0, 1]."""
        if self.cooling_from is None:
            return min(1.0, 0.05 + self.images / WARM_UP)
        return max(0.01, (self.end - self.images) / max(1, self.end - self.cooling_from))

    @property
    def accuracy(self) -> float | None:
        """The held-out accuracy so far."""
        return self.checks[-1][1] if self.checks else None

    @property
    def needs_check(self) -> bool:
        """Whether to measure the held-out accuracy now."""
        return self.images - (self.checks[-1][0] if self.checks else 0) >= CHECK_EVERY

    @property
    def has_converged(self) -> bool:
        """Whether the accuracy is high enough, or has not improved for long."""
        if self.accuracy is not None and self.accuracy >= GOOD_ACCURACY:
            return True
        recent = [value for at, value in self.checks if at > (1 - PATIENCE) * self.images]
        earlier = [value for at, value in self.checks if at <= (1 - PATIENCE) * self.images]
        if len(self.checks) < FEWEST_CHECKS or not earlier:
            return False
        return max(recent, default=0.0) <= max(earlier) + BETTER

    def add(self, num_images: int) -> None:
        """Count the images of a step, and begin the cool-down at the limit."""
        self.images += num_images
        if self.images >= self.longest:
            self.cool_down()

    def fit_into(self, num_images: int) -> None:
        """Begin the cool-down, and shorten it, if more than so many images would be left."""
        if self.images_if_cooling_now > num_images:
            self.cool_down()
            self.shortened_end = min(self.end, self.images + num_images)

    def add_check(self, accuracy: float) -> None:
        """Record a held-out accuracy, and begin the cool-down if more would not help."""
        self.checks.append((self.images, accuracy))
        if self.has_converged:
            self.cool_down()

    def cool_down(self) -> None:
        """Begin the cool-down, unless it has begun."""
        if self.cooling_from is None:
            self.cooling_from = self.images
