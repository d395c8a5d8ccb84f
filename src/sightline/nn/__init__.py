"""Networks: any token-yielding timm backbone, pooling, reduction, the encoder and its folder on disk."""
