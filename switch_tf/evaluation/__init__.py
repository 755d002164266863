"""How good a model is: likelihood, and scores of tasks."""
