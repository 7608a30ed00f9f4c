"""Files: tensors, outputs that appear whole or not at all, cards, digests, checkpoints, statistics, sources."""
