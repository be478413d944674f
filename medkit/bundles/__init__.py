"""Bundles as folders and archives: finding, reading, checking, packing and installing them, without running any."""
