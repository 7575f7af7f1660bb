"""Configs of comparisons: one budget and the same scores for every family."""
