"""The gRPC services: authenticate, parse, call one function, translate errors. The only room with gRPC.

    acceptor      connections: whose they are, how many, how long; bytes to and from gRPC
    call_server   gRPC's server, its event loop, its certificate
    calls         a call: whose it is, its messages and their deadlines, its thread
    call_guard    what every servicer begins with
    rounds, blobs, bandwidth, enrolment   one servicer each

Every call is authenticated by its peer certificate against the database; streams are authenticated again while they
last. A request with fields that this version does not know is refused: nothing unexamined is kept or handed on.

TLS 1.3 only. gRPC for Python has no switch for the version. The certificates are ECDSA, so a single RSA suite for
TLS 1.2 leaves that version without a common cipher, while 1.3 has its own list.
"""

import os

# gRPC reads both once, when it is imported.
os.environ["GRPC_SSL_CIPHER_SUITES"] = "ECDHE-RSA-AES256-GCM-SHA384"
# It would write a line for every handshake that a stranger breaks off.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
