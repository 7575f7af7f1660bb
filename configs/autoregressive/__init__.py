"""Configs of autoregressive models, one file a method."""
