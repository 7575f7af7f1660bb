"""Normalizing flows: an invertible map from noise to pictures, with its likelihood."""
