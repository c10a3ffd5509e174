"""Names of data sets and of image files, which nothing has to be loaded for."""

__all__ = ["DATA_NAMES", "EMBEDDED", "IMAGE_SUFFIXES"]

# Those that come with resdeploy, and all.
EMBEDDED = ("digits", "mnist1d")
DATA_NAMES = (*EMBEDDED, "cifar10", "cifar100", "image-folder", "npz")

IMAGE_SUFFIXES = (
    *(".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"),
)
