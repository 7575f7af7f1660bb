"""Diffusion and flow matching: a picture is denoised step by step out of noise."""
