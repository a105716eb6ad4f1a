"""Guidance: the scale λ that a model is asked for, its range and law, and the kinds of guided teacher."""
