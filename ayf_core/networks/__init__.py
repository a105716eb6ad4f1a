"""Networks for the mean velocity F(x, t, s | condition, λ), and the adversarial finish's discriminators."""
