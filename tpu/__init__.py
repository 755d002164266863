"""Cloud TPUs: jobs (`tpu.jobs`) and ahead-of-time compilation (`tpu.precompile`), which do not import each other."""
