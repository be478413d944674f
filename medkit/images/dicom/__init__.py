"""DICOM: headers by pydicom, pixels, the order of slices, segmentations. `reader` is the format that `images` uses."""
