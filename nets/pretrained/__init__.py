"""Frozen networks with published weights, that features and distances come from."""
