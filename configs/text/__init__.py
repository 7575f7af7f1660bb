"""Experiments with text encoders."""
