"""Where everything lies. All that is built or measured goes below `benchmarks/target`, which git ignores."""

from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parent.parent
REPOSITORY = BENCHMARKS.parent
TARGET = BENCHMARKS / "target"
RESULTS = TARGET / "results.json"
LOGS = TARGET / "logs"
RUNS = TARGET / "runs"
INDUCTOR = TARGET / "inductor"  # what torch.compile keeps
TEXT = TARGET / "text.txt"
SPEC = REPOSITORY / "specs" / "noisy_top2.moe"
GROWTH_SPEC = BENCHMARKS / "growth" / "grow.moe"
ROTARY_SPEC = BENCHMARKS / "growth" / "rotary.moe"
