"""`python3 -m pipelines STAGE`: what the commands of dvc.yaml call."""

import sys

from pipelines.start import stage

if __name__ == "__main__":
    sys.exit(stage())
