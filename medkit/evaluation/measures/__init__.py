"""The measures: overlap and surfaces of labels, similarity of images, distances of points."""
