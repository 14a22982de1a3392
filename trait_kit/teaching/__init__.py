"""Asking a language model: what passages (notebook 03) and ratings of educational value (notebook 01) share."""
