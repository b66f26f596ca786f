"""Follow one call operator by operator, over shapes without data: what it computes, moves and keeps."""
