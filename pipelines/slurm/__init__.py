"""Jobs on a Slurm cluster: submitted through submitit, followed, brought up on their nodes."""
