"""Variational autoencoders: a picture decoded from latents, continuous or discrete."""
