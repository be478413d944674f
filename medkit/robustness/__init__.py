"""How a bundle's results fall off when its inputs get worse.

What `medkit evaluate --robustness` calls: images are spoilt by shifts of several strengths and run through the bundle
as a user would run it, and its metric is compared with that on the images as they are.
"""
