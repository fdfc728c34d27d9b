"""The gRPC services: authenticate, parse, call one function, translate errors. The only room with servicers.

Every call is authenticated by its peer certificate against the database; streams are authenticated again while they
last. A request with fields that this version does not know is refused: nothing unexamined is kept or handed on.
Threads are few, so calls that last (streams, held polls) share a bounded number of slots, and the other calls always
get a thread.
"""
