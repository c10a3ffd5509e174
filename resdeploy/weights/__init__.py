"""Weights from elsewhere: files read as data, their wrappings taken off, their network found."""
