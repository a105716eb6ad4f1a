"""Where Ray comes from: one of this process's own, an existing one by address, or one inside a Slurm allocation."""
