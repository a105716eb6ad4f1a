"""Spaces of features in which samples are compared, one a file."""
