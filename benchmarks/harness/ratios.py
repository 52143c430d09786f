"""Ratios from interleaved runs.

A measurement is rounds of samples: in every round each participant had its turn, one shortly after the other. The speed
of the machine drifts from minute to minute, so absolute times of different minutes are not compared: a ratio is formed
within each round, from the medians of that round, and the median of these ratios is reported.
"""

from statistics import median


def ratio_of_rounds(ours, theirs):
    """Our time over theirs: (median, smallest, largest) of the ratios of the medians of each round.

    `ours` and `theirs` are lists of rounds, each a list of milliseconds.
    """
    ratios = [median(a) / median(b) for a, b in zip(ours, theirs, strict=True)]
    return median(ratios), min(ratios), max(ratios)


def ratio_of_minima(ours, theirs):
    """Our fastest sample over theirs: what both do when nothing disturbs them."""
    return min(map(min, ours)) / min(map(min, theirs))


def summary(rounds):
    """Median, minimum and number of all samples."""
    samples = [sample for part in rounds for sample in part]
    return {"median_ms": median(samples), "min_ms": min(samples), "samples": len(samples)}


def limit_ms(operations, traffic, gflops, gbs):
    """The time below which a step cannot be: its operations at the peak, then its traffic at the full bandwidth."""
    return operations / (gflops * 1e6) + traffic / (gbs * 1e6)


def optimizer_traffic(parameters):
    """Bytes that AdamW moves: it reads weight, gradient and two moments, and writes weight and moments, 4 bytes each."""
    return 7 * 4 * parameters
