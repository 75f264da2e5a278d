"""Speed and memory of recsys beside its peers, on the same files in one run."""
