"""Bundles: folder, archive, page inside, other layouts, tuned settings, predictions."""
