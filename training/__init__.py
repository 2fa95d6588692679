"""Runs any training method: experiment (config -> objects), state, step, loop, checkpoints, writers."""
