"""What a training writes into the new bundle: card, metadata, learning curve and log."""
