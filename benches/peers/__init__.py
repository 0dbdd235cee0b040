"""The comparison: gridnode beside what a user would pick instead, in one interleaved run. See docs/BENCHMARKS.md."""
