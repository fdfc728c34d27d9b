"""`hemofed-site prove`: shows the wall on this machine, for whoever has to sign that it stands. Never claims, tries.

    attempts   what a confined service tries: sockets, the export, keys; each with the kernel's answer
    confined   starts a twin of each unit, confined by the very same directives, to make those attempts; and looks at
               the services that run
    stain      a synthetic export in which every text, date, UID, path and label cell is a canary
    drill      a whole round on it: ingest, training, masking, up to the bytes that TLS would get
    search     looks for every canary, in every spelling, in all that this leaves behind
    report     the findings as text, and as one HTML page for the files

What cannot be shown here (no systemd, not root) is said to be not shown.
"""
