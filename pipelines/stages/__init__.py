"""The stages of the pipeline, a file each: `run(config, stage)` reads like its own summary."""
