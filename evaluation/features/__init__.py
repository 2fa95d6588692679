"""Feature extractors by name: `build(train_source, test_source, cache_dir)` gives a `Features`."""

from evaluation.features.classifier import train_or_load_classifier

FEATURES = {"classifier": train_or_load_classifier}
