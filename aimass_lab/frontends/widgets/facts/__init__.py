"""What the views of the panel need besides records: one fact a file."""
