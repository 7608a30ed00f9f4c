"""What comes of it, as data: evaluations, scores, what they cost, and the card of a model that is published."""
