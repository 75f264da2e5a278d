"""The runtime, from raw rows to scores: torch, numpy, pyarrow, polars, polars-hash only."""
