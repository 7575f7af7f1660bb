"""Captions to conditions: tokenizers, encoders and the interface they share."""
