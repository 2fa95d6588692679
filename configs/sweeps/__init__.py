"""Sweeps over fields of a config, for scripts/sweep.py: each file has `sweep()`, made with the helpers of base.py."""
