"""Feature extractors by name. Those of `PRETRAINED` come with weights; the classifier is trained on the data."""

from evaluation.features.dinov2 import load_dinov2
from evaluation.features.efficientnet_lite0 import load_efficientnet_lite0
from evaluation.features.inception import load_inception

PRETRAINED = {"efflite0": load_efficientnet_lite0, "inception": load_inception, "dinov2": load_dinov2}
FEATURES = ("classifier", "points", *PRETRAINED)
