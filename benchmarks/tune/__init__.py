"""How fast what `tune` finds is, and how good its search."""
