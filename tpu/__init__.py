"""Cloud TPUs: what a training step becomes when XLA compiles it, and how jobs are submitted."""
