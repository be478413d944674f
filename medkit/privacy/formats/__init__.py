"""Formats other than DICOM: one module for each, with a function that returns a file's content without its texts.

Headers are written anew from fields that are known to be numbers or words of the format. All else goes, also what
stands behind the voxels; the voxels stay bit for bit.
"""
