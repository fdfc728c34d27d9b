"""A site's part in a round, from the aggregator's offer to the verified next model."""
