"""Data sets of captioned pictures, and the resumable stream of batches."""
