"""DICOM studies: their series, which of them a task takes, their table, and NIfTI files of them."""
