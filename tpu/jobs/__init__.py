"""Jobs on Cloud TPUs."""
