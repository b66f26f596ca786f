"""Text, clicks and requests in; one verb; a rendering out."""
