"""The programs of a hospital: agent and trainer."""

import os

# Matrix products here are the small ones of the rotation. OpenBLAS would share them out among threads that wait
# for one another by spinning: on a busy machine that costs ten times the work. Read when numpy is first imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
