"""What a schema cannot say: a file a subject, each a function from all objects to findings."""
