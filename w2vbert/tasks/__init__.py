"""Where data, models, training and decoding meet."""
