"""Short training of a changed copy: from the original's outputs, from labels, or both."""
