"""Train and judge image classifiers against Wasserstein distributional adversaries."""

import os

# Waiting threads sleep instead of spinning: small networks wait a lot, and spinning on shared cores costs tenfold.
# Read when torch is first imported; set it yourself to choose otherwise.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"
