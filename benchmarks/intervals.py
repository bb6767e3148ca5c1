"""How often intervals of an error rate hold the true rate, in a simulation.

    python -m benchmarks.intervals [--trials 4000]

Prints for each kind of speakers and each number of them the share of sets whose 95 % interval holds the rate of all
speakers there might be: that of `w2vbert score`, and percentiles of a bootstrap over speakers.
"""

import argparse
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from w2vbert.decoding.significance import rate_interval

COUNTS = (3, 5, 8, 15, 40, 100)
RESAMPLES = 600
MANY = 400_000
World = Callable[[np.random.Generator, int], tuple[NDArray[np.int64], NDArray[np.float64]]]


def alike(generator: np.random.Generator, count: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Words and error probability of speakers who are all as hard to recognise."""
    return generator.integers(150, 400, count), np.full(count, 0.1)


def different(generator: np.random.Generator, count: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Rates with a coefficient of variation of 0.5, as in LibriSpeech."""
    return generator.integers(1500, 3500, count), 0.08 * generator.gamma(4, 0.25, count)


def very_different(generator: np.random.Generator, count: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Rates and numbers of words that differ by a factor of two either way in a third of the speakers."""
    words = (200 * np.exp(generator.normal(0, 0.7, count))).astype(np.int64) + 20
    return words, np.minimum(0.1 * np.exp(generator.normal(0, 0.7, count) - 0.245), 0.9)


def percentiles(generator: np.random.Generator, errors: NDArray[np.int64], words: NDArray[np.int64]) -> list[float]:
    """2.5 % and 97.5 % of the rates of speakers drawn with replacement, in percent."""
    draws = generator.multinomial(len(words), np.full(len(words), 1 / len(words)), size=RESAMPLES)
    low, high = np.percentile((draws @ errors) / (draws @ words), [2.5, 97.5])
    return [100 * float(low), 100 * float(high)]


def coverage(world: World, count: int, trials: int) -> tuple[float, float]:
    """Shares, in percent, of our interval and of percentiles."""
    generator = np.random.default_rng(count)
    words, rates = world(generator, MANY)
    true = 100 * float((words * rates).sum() / words.sum())
    held = np.zeros(2)
    for _ in range(trials):
        words, rates = world(generator, count)
        errors = generator.binomial(words, rates)
        intervals = [rate_interval(errors, words), percentiles(generator, errors, words)]
        held += [low <= true <= high for low, high in intervals]
    ours, bootstrap = 100 * held / trials
    return float(ours), float(bootstrap)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=4000)
    trials = parser.parse_args().trials
    print("| speakers | " + " | ".join(map(str, COUNTS)) + " |\n" + "|---" * (len(COUNTS) + 1) + "|")
    for world in (alike, different, very_different):
        rows = [coverage(world, count, trials) for count in COUNTS]
        for name, values in zip(("this interval", "bootstrap percentiles"), zip(*rows, strict=True), strict=True):
            print(f"| {world.__name__.replace('_', ' ')}: {name} | " + " | ".join(f"{v:.1f}" for v in values) + " |")


if __name__ == "__main__":
    main()
