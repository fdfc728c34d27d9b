"""Generated from the .proto files beside it: proto/generate.py."""
