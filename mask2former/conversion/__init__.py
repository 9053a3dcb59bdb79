"""Conversion of weights: from and to Hugging Face, ImageNet backbones, file formats, and packing of a training."""
