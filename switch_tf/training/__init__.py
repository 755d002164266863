"""The pure training step, the loop around it, the optimizer, schedules and checkpoints."""
