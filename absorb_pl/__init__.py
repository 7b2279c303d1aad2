"""Measure how sparse autoencoders split and absorb features of a language model."""

__version__ = "0.1.0"
