"""Configs of diffusion and flow matching, one file a method."""
