"""Codecs, one a file: how data become latents and latents data."""
