"""MLflow: where runs are kept, how they are opened, found, worded and served."""
