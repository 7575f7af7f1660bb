"""What all families share and none owns."""
