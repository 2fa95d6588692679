"""From samples to numbers and pictures."""
