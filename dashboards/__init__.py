"""Reads an MLflow store into tidy frames and draws them. Knows nothing of this project's other packages."""
