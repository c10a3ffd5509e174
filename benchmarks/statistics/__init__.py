"""Coverage of the intervals that the product prints."""
