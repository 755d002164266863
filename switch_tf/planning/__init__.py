"""What a model costs and where it fits, before it is made."""
