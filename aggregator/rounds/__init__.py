"""A round: driver, decisions, transitions, submissions, polling, aggregation; and the housekeeping beside it."""
