"""Multi-scale deformable attention under the names of Deformable DETR; `mask2former.ops` does the work."""
