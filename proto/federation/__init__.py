"""The contract: code on which two machines must agree exactly."""
