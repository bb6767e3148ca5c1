"""Search, language models and scoring."""
