"""From audio files to typed batches."""
