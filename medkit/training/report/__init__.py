"""What a training leaves behind: the new bundle's card and metadata, its curve and its history."""
