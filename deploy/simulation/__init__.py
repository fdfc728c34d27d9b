"""Federated, central and local training compared on synthetic patients of six sites."""
