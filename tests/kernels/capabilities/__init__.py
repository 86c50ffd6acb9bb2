"""What each method can do on each layer type, proved cell by cell."""
