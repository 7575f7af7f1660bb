"""Configs of variational autoencoders and image tokenizers, one file a method."""
