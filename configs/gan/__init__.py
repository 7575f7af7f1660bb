"""Configs of GANs, one file a method."""
