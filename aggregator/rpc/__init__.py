"""The gRPC door: authenticate, parse, call one function, translate errors. The only file with servicers.

Every call is authenticated by its peer certificate against the database, streams again while they last. Requests with
fields this version does not know are refused: nothing unexamined is ever kept or handed on. Threads are few, so calls
that last (streams, held polls) share a bounded number of places and the others always find a thread.
"""
