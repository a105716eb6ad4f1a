"""How good samples are: features, distances between sets, copying of training data, intervals."""
