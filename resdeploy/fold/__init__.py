"""The BatchNorm fold: algebra, affine maps, rules of operators, sites and refusals."""
