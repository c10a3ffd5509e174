"""The normal form of a network: a closed list of operators, and the rewritings between writers."""
