"""The search for λ: where it looks, the live model that it scores, and what it leaves; knows nothing of DVC."""
