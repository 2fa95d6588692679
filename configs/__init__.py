"""Experiments by name: one file per data set; `base.py` has every field."""
