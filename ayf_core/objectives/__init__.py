"""Training objectives, one file each: flow matching (teachers), flow maps with a teacher and without, the finish."""
