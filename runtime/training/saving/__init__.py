"""What a run leaves: state, log, folder, the finished model."""
