"""w2v-BERT: pre-training, fine-tuning, self-training and decoding of speech recognisers."""

__version__ = "0.1.0"
