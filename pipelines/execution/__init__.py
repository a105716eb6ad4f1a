"""Runs stages: what a stage is given, its process, Ray Train and its workers."""
