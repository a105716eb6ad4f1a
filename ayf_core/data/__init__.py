"""Data sets, codecs (data <-> latents) and latent shards."""
