"""The experiment platform around :mod:`ayf_core`: settings, stages, execution, tracking, commands."""

import os

# Read by MLflow when it is imported: no telemetry, no minutes of retries of its own where a server
# went away, no lines about addresses.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
