"""Cloud TPUs: what a training step becomes when XLA compiles it, from shapes alone."""
