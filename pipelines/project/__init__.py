"""What dvc.yaml declares and dvc.lock remembers."""
