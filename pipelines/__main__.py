"""`python -m pipelines STAGE`: what the commands of dvc.yaml call."""

import sys

from pipelines.execution.process import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
