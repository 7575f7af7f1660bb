"""Scores as pure functions of features or images; none knows where they come from."""
