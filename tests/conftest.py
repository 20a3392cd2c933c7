"""One thread a process, unless OMP_NUM_THREADS says otherwise.

The tests run side by side, and small networks are slower on several threads. What they say must hold on any number.
Processes that wait for their threads in a loop take the cores from those beside them: here they sleep.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
