"""The experiment platform around :mod:`ayf_core`: settings, stages, execution, tracking, commands."""

import os

# Read by MLflow when it is imported: no telemetry, no minutes of retries of its own where a server
# went away, no lines about addresses.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")

# Read by OpenMP when torch is imported, here and in the Ray workers that inherit it: how often a thread looks for work
# before it sleeps. By itself it looks for milliseconds, on a core that other work waits for: `benchmarks/threads.py`.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
