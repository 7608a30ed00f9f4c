"""What comes of evaluations, as data: scores, and what they cost."""
