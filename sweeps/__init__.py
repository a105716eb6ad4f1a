"""Searches over the settings of the pipeline: Ray Tune trials of the stages' own code, logged into MLflow."""
