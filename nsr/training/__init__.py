"""Training: the loop and its schedules, checkpoints, guards, logs, and what a trained run can show."""
