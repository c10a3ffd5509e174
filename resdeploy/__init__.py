"""From a trained ResNet to a model you can prove on the device."""

__all__ = ["__version__"]

__version__ = "0.1.0"
