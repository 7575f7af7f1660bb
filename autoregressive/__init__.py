"""Autoregressive models: a picture as a sequence of pixels or tokens."""
