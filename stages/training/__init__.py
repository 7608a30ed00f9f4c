"""Fine-tuning: a base and a task make a checkpoint."""
