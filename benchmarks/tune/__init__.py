"""Speed of the winners of `tune`, and quality of its search."""
