"""Feature extractors: 8-bit images -> the vectors in which sets of images are compared."""
