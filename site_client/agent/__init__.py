"""The agent: the side of a site that has the network and reads no patient data."""
