"""A step through the compiler of TPUs that are not there."""
