"""Frozen networks with published weights, that features and distances come from.

A TPU rounds the factors of products unless told otherwise: features that go into a
score are computed within `jax.default_matmul_precision("highest")`.
"""
