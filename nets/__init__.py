"""Flax Linen modules: U-Net, DiT, transformer and their parts."""
