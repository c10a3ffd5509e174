"""Samples on their way to a model: data sets by name, files, preprocessing."""
