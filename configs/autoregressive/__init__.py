"""Configs of normalizing flows, one file a method."""
