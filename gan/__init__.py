"""Adversarial training: GANs, and a critic added to a family given as an argument."""
