"""Train and judge image classifiers against Wasserstein distributional adversaries."""

__version__ = "0.1.0"
