"""Symmetric matrices as such: eigenvalues, packing, factors and low rank. No layer in it."""
