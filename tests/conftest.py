"""One thread a process: the tests run side by side, and small networks are slower on several threads."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
