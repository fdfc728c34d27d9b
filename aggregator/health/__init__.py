"""What monitoring asks a running aggregator, without a log-in: is it alive, is it ready, how does it do.

Nothing here names a hospital or says anything about patients or models.
"""
