"""Learning a few-step generator from a teacher. Empty until its first method lands."""
