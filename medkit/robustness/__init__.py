"""How a bundle's results get worse when its input images do.

What `medkit evaluate --robustness` calls: images are corrupted at several strengths and run through the bundle as a
user would run it, and its metric is compared with the metric on the original images.
"""
