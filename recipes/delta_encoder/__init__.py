"""Recipes of the Delta-Matryoshka encoder, and the code that runs them."""
