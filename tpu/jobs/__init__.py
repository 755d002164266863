"""Training jobs on Cloud TPUs: submitting, watching, restarting and cancelling them."""
