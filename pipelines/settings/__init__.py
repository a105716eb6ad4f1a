"""What a setting is, params.yaml, runtimes: read, checked and written."""
