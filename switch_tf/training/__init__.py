"""The pure training and evaluation steps, the objective, the optimizer and learning rate schedules."""
