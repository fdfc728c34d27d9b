"""The coordinator's service: it receives masked updates and decodes nothing but their sum."""

import os

# Matrix products here are the small ones of the rotation. OpenBLAS would divide each among threads that wait for one
# another by spinning: on a busy machine that costs ten times the work. numpy reads the variable when it is imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
