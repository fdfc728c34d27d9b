"""`hemofed-site prove`: shows the wall on this machine to a person who has to sign for it. It tries, and never claims.

    attempts      attempts of a confined service: sockets, the export, keys; each with the kernel's answer
    confined      starts a twin of each unit, confined by the very same directives, to make those attempts; and checks
                  the running services
    canaries      a synthetic export in which every text, date, UID, path and label cell is a canary
    round_check   a whole round on it: ingest, training, masking, up to the bytes that TLS would get
    search        searches all files that the round leaves for every canary, in every spelling
    report        the findings as text, and as one HTML page to print and file

A claim that cannot be shown here (no systemd, not root) is reported as not shown.
"""
