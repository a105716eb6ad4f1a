"""Data sets, one a file: where examples come from, and what a person sets of each."""
